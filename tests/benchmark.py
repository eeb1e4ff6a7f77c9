"""Training time until 99 % of the test images are right: python tests/benchmark.py, or `make bench`. Twenty minutes.

In turns, in one process, on all of MNIST, on two cores:
- PyTorch's own MNIST example: its network of 1,199,882 parameters, its optimizer, schedule and data
  loader, until an epoch ends with 99.0 % of the test images right; three seeds;
- MNIST_CNN by the recipe fast, which has a fixed length; ten seeds, three or four after each run of the example.
Then once, until 99.0 % or for eight epochs: MNIST_CNN as tutorials train it, by Adam at 1e-3 in batches of 64.

The time of testing is not counted. The recipe fast was chosen by its validation accuracy; docs/speed.md says
when the test images were looked at. The results go to figures/bench.json and figures/bench.png.
"""

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

from mnist.evaluate import evaluate
from mnist.networks import MNIST_CNN
from mnist.recipes import RECIPES
from mnist.train import bfloat16_is_fast, train
from mnist_utils import FILES, hold_out, load_split, mean_std, write_idx

ROOT = Path(__file__).parents[1]
EXAMPLE_SEEDS = 1, 2, 3
SEEDS = (0, 1, 2, 3), (4, 5, 6), (7, 8, 9)  # of the recipe fast, after each run of the example
GOAL = 0.99
FAST_NAME, TUTORIAL, EXAMPLE = "MNIST_CNN, recipe fast", "MNIST_CNN, Adam, batches of 64", "PyTorch's example"
FAST, DEFAULT = RECIPES["fast"].settings(), RECIPES["notebook"].settings()


class Example(nn.Sequential):
    """The network of PyTorch's MNIST example."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(128, 10))


def until_goal(model: nn.Module, optimizer: torch.optim.Optimizer, schedule, loader: DataLoader, test: tuple,
               longest: int) -> dict:
    """Train as the example's loop does, until an epoch ends with the goal reached on the test images."""
    seconds, accuracies = [], []
    for epoch in range(longest):
        model.train()
        start = time.perf_counter()
        bar = tqdm(loader, desc=f"{type(model).__name__}, epoch {epoch + 1}", leave=False, disable=None)
        for images, labels in bar:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if schedule:
            schedule.step()
        seconds.append(time.perf_counter() - start)
        accuracies.append(evaluate(model, *test[:2], mean=test[2], std=test[3])[1])
        if accuracies[-1] >= GOAL:
            break
    return {"seconds": [sum(seconds)], "epochs": [len(seconds)], "test_accuracy": [accuracies[-1]]}


def example(seed: int, loader: DataLoader, test: tuple) -> dict:
    """Train PyTorch's MNIST example."""
    torch.manual_seed(seed)
    model = Example()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    return until_goal(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7), loader, test, longest=8)


def ours(name: str, seeds: Iterable[int], data: tuple, recipe: dict) -> dict:
    """Train by the recipe once for each seed, without validation."""
    train_set, val_set, (test_images, test_labels, mean, std) = data
    seconds, accuracies = [], []
    for seed in tqdm(seeds, desc=name, leave=False, disable=None):
        torch.manual_seed(seed)
        model = MNIST_CNN()
        start = time.perf_counter()
        for _ in train(model, train_set, val_set, mean=mean, std=std, seed=seed, **recipe | {"validate": False}):
            pass
        seconds.append(time.perf_counter() - start)
        accuracies.append(evaluate(model, test_images, test_labels, mean=mean, std=std)[1])
    return {"seconds": seconds, "epochs": [recipe["epochs"]] * len(seconds), "test_accuracy": accuracies}


def joined(results: list[dict]) -> dict:
    """One result of several."""
    return {key: [value for result in results for value in result[key]] for key in results[0]}


def peak_mb() -> float:
    """The most memory that this process has held since the last `forget_peak`; Linux alone tells."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def growth(copies: int) -> dict:
    """Seconds and memory of one epoch on so many copies of the training images, read from IDX files, in this process.

    `added_mb` is what training needs at its peak beyond what the process held before, images included.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, array in zip(FILES["train"], load_split("train", ROOT / "dataset")):
            write_idx(Path(folder, name), np.tile(array, (copies, *[1] * (array.ndim - 1))))
        images, labels = load_split("train", folder)
    model, validation = MNIST_CNN(), (images[:5000], labels[:5000])
    next(train(model, validation, validation, mean=0.13, std=0.31, seed=0, **DEFAULT))  # libraries take their share
    forget_peak()
    before, start = peak_mb(), time.perf_counter()
    next(train(model, (images, labels), validation, mean=0.13, std=0.31, seed=0, **DEFAULT | {"epochs": 1}))
    return {"images": len(images), "seconds": time.perf_counter() - start, "images_mb": images.nbytes / 1e6,
            "added_mb": peak_mb() - before}


def by_command(folder: str) -> subprocess.Popen:
    """Start a training by the recipe fast on the command line; its weights go to this folder."""
    return subprocess.Popen([sys.executable, "run_model.py", "--mode", "train", "--recipe", "fast", "--model-path",
                             str(Path(tempfile.mkdtemp(dir=folder), "weights.pth"))],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def seconds_of(process: subprocess.Popen) -> float:
    """The seconds of training that a command has printed."""
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return float(re.search(r"trained in (\S+) s", printed)[1])


def under_load(runs: int = 5) -> dict[str, list[float]]:
    """Seconds of training on a quiet machine, beside as many busy processes as cores, and two trainings at a time."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = [seconds_of(by_command(folder)) for _ in range(runs)]
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
        try:
            beside_busy = [seconds_of(by_command(folder)) for _ in range(runs)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        two = [seconds_of(process) for _ in range(runs) for process in [by_command(folder), by_command(folder)]]
    return {"quiet": quiet, "beside as many busy processes as cores": beside_busy, "two trainings at a time": two}


def in_a_process_of_its_own(copies: int) -> dict:
    command = [sys.executable, __file__, "growth", str(copies)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    images, labels = load_split("train", ROOT / "dataset")
    mean, std = mean_std(images)
    test = (*load_split("test", ROOT / "dataset"), mean, std)
    data = *hold_out(images, labels), test

    examples, fast = [], []
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name in (*FILES["train"], *FILES["test"]):
            shutil.copy(ROOT / "dataset" / name, raw)
        normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        loader = DataLoader(MNIST(folder, transform=normalise), batch_size=64, shuffle=True)
        ours("warming up", [0], data, FAST)  # libraries load what they need
        for seed, seeds in zip(EXAMPLE_SEEDS, SEEDS):
            examples.append(example(seed, loader, test))
            fast.append(ours("recipe fast", seeds, data, FAST))
            print(f"seconds of the example: {examples[-1]['seconds'][0]:.1f}; of the recipe fast: "
                  + ", ".join(f"{seconds:.1f}" for seconds in fast[-1]["seconds"]), file=sys.stderr, flush=True)
        torch.manual_seed(0)
        model = MNIST_CNN()
        tutorial = until_goal(model, torch.optim.Adam(model.parameters(), lr=1e-3), None, loader, test, longest=8)
    results = {FAST_NAME: joined(fast), TUTORIAL: tutorial, EXAMPLE: joined(examples)}
    # each training run by the recipe fast, compared with the example's run just before it
    ratios = [one["seconds"][0] / seconds for one, runs in zip(examples, fast) for seconds in runs["seconds"]]
    warped = {augment: statistics.median(ours(f"augment={augment}", range(3), data,
                                              DEFAULT | {"epochs": 1, "augment": augment})["seconds"])
              for augment in (False, True)}

    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
               "system": platform.system(), "threads": torch.get_num_threads(),
               "bfloat16": bfloat16_is_fast(torch.device("cpu")), "python": platform.python_version()}
    machine |= {name: version(name) for name in ("torch", "torchvision", "numpy")}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{'':34}{'runs':>5}{'seconds':>9}{'spread':>17}{'epochs':>8}{'test accuracy':>20}")
    for name, result in results.items():
        low, high = min(result["seconds"]), max(result["seconds"])
        result["reached"] = min(result["test_accuracy"]) >= GOAL
        span = f"{min(result['test_accuracy']):.2%} to {max(result['test_accuracy']):.2%}"
        print(f"{name:34}{len(result['seconds']):5}{statistics.median(result['seconds']):9.1f}"
              f"{f'{low:.1f} to {high:.1f}':>17}{statistics.median(result['epochs']):8.0f}{span:>20}"
              + ("" if result["reached"] else "  99.0 % not reached"))
    print(f"times faster than the example's run before it: {statistics.median(ratios):.0f} in the median, "
          f"{min(ratios):.0f} to {max(ratios):.0f}")
    print(f"augmentation: {warped[False]:.2f} s per epoch without, {warped[True]:.2f} s with")
    sizes = [in_a_process_of_its_own(copies) for copies in (1, 10)]
    for size in sizes:
        print(f"{size['images']:,} images of {size['images_mb']:.0f} MB: one epoch in {size['seconds']:.1f} s, "
              f"training takes {size['added_mb']:.0f} MB more")

    load = under_load()
    for name, seconds in load.items():
        print(f"recipe fast, {name}: {statistics.median(seconds):.1f} s, {min(seconds):.1f} to {max(seconds):.1f} s")

    (ROOT / "figures" / "bench.json").write_text(json.dumps({
        "machine": machine, "goal": GOAL, "recipe_fast": FAST, "results": results, "times_faster": ratios,
        "seconds_per_epoch": {"plain": warped[False], "augmented": warped[True]}, "growth": sizes,
        "under_load": load}, indent=2) + "\n")
    draw(results, statistics.median(ratios))


def draw(results: dict, times_faster: float) -> None:
    names = list(results)
    medians = [statistics.median(results[name]["seconds"]) for name in names]
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh(names, medians, color=["#006BA4", "#ABABAB", "#ABABAB"])
    ax.bar_label(bars, [f"{seconds:.1f} s" + ("" if results[name]["reached"] else ", 99.0 % not reached")
                        + (f", {times_faster:.0f} times faster" if name == FAST_NAME else "")
                        for name, seconds in zip(names, medians)], padding=4)
    ax.set(xlabel="training time until 99.0 % of the test images are right (s)", xscale="log",
           xlim=(1, 20 * max(medians)))
    figure.savefig(ROOT / "figures" / "bench.png", dpi=150)


if __name__ == "__main__":
    if sys.argv[1:2] == ["growth"]:
        print(json.dumps(growth(int(sys.argv[2]))))
    else:
        main()
