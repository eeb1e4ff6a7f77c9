"""How fast the exports predict: python tests/benchmark_inference.py, also in `make bench`. Half a minute.

Side by side in one run, from uint8 images to probabilities: PyTorch in this process, with the
weights of the safetensors file, and every other export in its own runtime, one image and 250 at
a time, with one thread and with two; then single images on one thread, each call timed by itself.
The runtimes take turns, so that whatever else the machine does meets all of them; on a busy one,
two threads wait for each other and are of no use. The results go to figures/bench_inference.json.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mnist.export import FORMATS, HTML, Run, export
from mnist.files import EXPORT_ENDINGS
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
NAMES = {"safetensors": "PyTorch"} | {format: format for format in FORMATS if format not in ("safetensors", HTML)}
SETTINGS = [(batch, threads) for batch in (1, 250) for threads in (1, 2)]
REPEATS = 5
SECONDS = 0.15  # of one repeat
CALLS = 2_000  # of single images


def throughput(run: Run, images: np.ndarray, batch: int) -> float:
    """Images per second, over SECONDS and a bit, after a tenth of that to warm up."""
    batches = [images[start:start + batch] for start in range(0, len(images) - batch + 1, batch)]
    for seconds in (SECONDS / 10, SECONDS):
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            run(batches[count % len(batches)])
            count += 1
    return batch * count / passed


def latencies(run: Run, images: np.ndarray) -> list[float]:
    """Milliseconds of each of CALLS calls with one image."""
    milliseconds = []
    for index in range(CALLS):
        image = images[index:index + 1]
        start = time.perf_counter()
        run(image)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds


def measure(paths: dict[str, Path], images: np.ndarray) -> tuple[dict, dict]:
    """Images per second, REPEATS times for each format and setting, and one list of latencies for each format."""
    speeds = {(format, *setting): [] for format in NAMES for setting in SETTINGS}
    with tqdm(total=REPEATS * len(speeds), leave=False, disable=None) as bar:
        for batch, threads in SETTINGS:
            torch.set_num_threads(threads)
            runs = {format: FORMATS[format].open(path) for format, path in paths.items()}
            for _ in range(REPEATS):
                for format, run in runs.items():
                    speeds[format, batch, threads].append(throughput(run, images, batch))
                    bar.update()
    torch.set_num_threads(1)
    return speeds, {format: latencies(FORMATS[format].open(path), images) for format, path in paths.items()}


def worked_elsewhere() -> float:
    """Seconds that all cores have worked for other processes since the machine started; Linux alone tells."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def main() -> None:
    images, _ = load_split("test", ROOT / "dataset")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        paths = {format: Path(folder, "network" + EXPORT_ENDINGS[format]) for format in NAMES}
        reports = {format: export(ROOT / "MNIST-MODEL.pth", path, format, ROOT / "dataset")
                   for format, path in paths.items()}
        start, before = time.perf_counter(), worked_elsewhere()
        speeds, waits = measure(paths, images)
        others = (worked_elsewhere() - before) / (time.perf_counter() - start)

    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
               "cores": os.cpu_count(), "system": platform.system(), "cores_busy_elsewhere": round(others, 2)}
    machine |= {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{f'images per second, middle of {REPEATS}':38}"
          + "".join(f"{f'batch {batch}, threads {threads}':>24}" for batch, threads in SETTINGS) + f"{'one image':>26}")
    results = {}
    for format, name in NAMES.items():
        report, row = reports[format], {}
        for batch, threads in SETTINGS:
            repeats = speeds[format, batch, threads]
            row[f"batch {batch}, threads {threads}"] = {
                "images_per_second": statistics.median(repeats), "low": min(repeats), "high": max(repeats)}
        median, slow = np.quantile(waits[format], [0.5, 0.99])
        results[name] = {"bytes": report.size, "test_accuracy": report.accuracy, **row,
                         "one_image_ms": {"median": median, "99 %": slow}}
        cells = [f"{cell['images_per_second']:,.0f} ({cell['low']:,.0f}–{cell['high']:,.0f})" for cell in row.values()]
        print(f"{name:12}{report.size:10,} bytes{report.accuracy:8.2%} " + "".join(f"{cell:>24}" for cell in cells)
              + f"{f'{median:.3f} ms (99 %: {slow:.3f})':>26}")
    path = ROOT / "figures" / "bench_inference.json"
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
