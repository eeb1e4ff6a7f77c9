"""Mutate every kind of file that the project reads: python tests/fuzz.py, or `make fuzz SECONDS=600`.

Each mutated file must be refused in one sentence, or be read as what it says. A file with a checksum
(gzip, weights, checkpoint, exports, study.json) must give what was saved; an IDX file must give the array that
NumPy finds in its bytes; a picture and a .env file must give values in their ranges. Anything else is
a fault: it is printed with the seed that repeats it, and the exit status is 1.
"""

import argparse
import contextlib
import gzip
import io
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from app.settings import SettingsError, read_settings
from mnist.checkpoint import read_checkpoint
from mnist.export import check_export, export
from mnist.files import DETECTOR, EXPORT_ENDINGS, DamagedError, read_json
from mnist.networks import MNIST_CNN
from mnist.picture import PictureError, read_picture
from mnist.train import train
from mnist.weights import WeightsError, checksums, load_detector, load_weights
from mnist_utils import IDX_DTYPES, IDXError, load_split, read_idx, write_idx
from mutation import mutated

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kind:
    """A kind of file: an example, what reads it, how it says no, and what may come of it otherwise."""

    example: bytes
    name: str  # of the file
    read: Callable[[Path], object]
    refusal: type[Exception]
    allowed: Callable[[object, bytes], bool]  # whether the result may come of these bytes


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind, with examples made in a folder."""
    images, labels = load_split("test", ROOT / "dataset")
    write_idx(folder / "idx", images[:20])
    whole = (folder / "idx").read_bytes()
    part = images[:100], labels[:100]
    next(train(MNIST_CNN(), part, part, mean=0.13, std=0.31, epochs=2, batch_size=50, learning_rate=1e-3, seed=0,
               checkpoint=folder / "checkpoint"))
    weights, checkpoint = (ROOT / "MNIST-MODEL.pth").read_bytes(), (folder / "checkpoint").read_bytes()
    found = {
        "IDX": Kind(whole, "idx", read_idx, IDXError, as_numpy_reads),
        "gzip": Kind(gzip.compress(whole), "idx.gz", read_idx, IDXError,
                     same_as(images[:20].tobytes(), np.ndarray.tobytes)),
        "weights": Kind(weights, "w.pth", load_weights, WeightsError,
                        same_as(contents(load_weights(ROOT / "MNIST-MODEL.pth")), contents)),
        "detector": Kind(DETECTOR.read_bytes(), "d.pth", load_detector, WeightsError,
                         same_as(contents(load_detector(DETECTOR)), contents)),
        "checkpoint": Kind(checkpoint, "c", read_checkpoint, WeightsError,
                           same_as(checksums(read_checkpoint(folder / "checkpoint")), checksums)),
    }
    for format, ending in EXPORT_ENDINGS.items():
        export(ROOT / "MNIST-MODEL.pth", folder / format, format, ROOT / "dataset")
        found[f"export {format}"] = Kind((folder / format).read_bytes(), f"e{ending}", check_export,
                                         WeightsError, lambda result, data: False)
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(np.kron(255 - images[0], np.ones((2, 2), np.uint8))).save(buffer, format)
        found[f"picture {format}"] = Kind(buffer.getvalue(), "picture", read_picture, PictureError, is_picture)
    results = ROOT / "study" / "study.json"
    found["study.json"] = Kind(results.read_bytes(), "study.json", read_json, DamagedError,
                               same_as(read_json(results), lambda result: result))
    settings = b"DATABASE_URL=postgresql://anna:p%40ss@localhost:5432/mnist\nAPP_USER=anna\nAPP_PASSWORD=secret\n"
    found[".env"] = Kind(settings, ".env", in_its_folder, SettingsError, lambda result, data: bool(result.database))
    return found


def as_numpy_reads(result: object, data: bytes) -> bool:
    """Whether an array is what NumPy finds behind the header of an IDX file."""
    dtype = IDX_DTYPES[data[2]]
    shape = np.frombuffer(data, ">u4", data[3], 4)
    expected = np.frombuffer(data, dtype, offset=4 + 4 * data[3]).reshape(shape)
    return isinstance(result, np.ndarray) and result.shape == expected.shape \
        and result.tobytes() == expected.astype(dtype.newbyteorder("=")).tobytes()


def same_as(expected: object, of: Callable) -> Callable[[object, bytes], bool]:
    return lambda result, data: of(result) == expected


def contents(loaded: tuple) -> dict[str, str]:
    model, metadata = loaded
    return checksums({"weights": model.state_dict(), "metadata": metadata})


def is_picture(result: object, data: bytes) -> bool:
    grey = result.grey
    return grey.ndim == 2 and grey.dtype == np.float32 and 0 <= grey.min() and grey.max() <= 1


def in_its_folder(path: Path) -> object:
    with contextlib.chdir(path.parent):
        return read_settings()


def fuzz(kind: Kind, folder: Path, seed: int, goes_on: Callable[[int], bool]) -> tuple[Counter, float, list[str]]:
    """Outcomes of mutations 0, 1, ... while `goes_on(number)`; the slowest one's seconds; the faults in words."""
    outcomes, slowest, faults, number, path = Counter(), 0.0, [], 0, folder / kind.name
    while goes_on(number):
        data = mutated(kind.example, random.Random(f"{seed} {number}"))
        path.write_bytes(data)
        outcome, seconds = outcome_of(kind, path, data)
        slowest = max(slowest, seconds)
        if outcome not in ("read", "refused"):
            faults.append(f"mutation {number} of seed {seed}: {outcome}")
            outcome = "fault"
        outcomes[outcome] += 1
        number += 1
    return outcomes, slowest, faults


def forget_settings() -> None:
    """Remove the page's settings from the environment, which would come before those of a .env file."""
    for name in [name for name in os.environ if name.startswith(("DATABASE_URL", "POSTGRES_", "APP_", "MODEL_PATH"))]:
        del os.environ[name]


def outcome_of(kind: Kind, path: Path, data: bytes) -> tuple[str, float]:
    """How reading a file with these bytes ends, and after how many seconds: "read", "refused", or else a fault."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(action="error"):
            result = kind.read(path)
        outcome = "read" if kind.allowed(result, data) else "wrong"
    except kind.refusal as error:
        outcome = "refused" if "\n" not in str(error) else "wrong"
    except Exception as error:
        outcome = repr(error)[:80]
    return outcome, time.perf_counter() - start


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=10, help="for each kind (default: %(default)s)")
    options.add_argument("--count", type=int, help="so many mutations of each kind, however long they take")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", nargs="+", help="some kinds only")
    chosen, total = options.parse_args(), 0
    torch.set_num_threads(1)
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # it reports each line that it cannot parse
    forget_settings()
    print(f"seed {chosen.seed}\n{'':22}{'mutated':>10}{'refused':>10}{'read':>10}{'faults':>8}{'slowest':>12}")
    with tempfile.TemporaryDirectory() as folder:
        found = kinds(Path(folder))
        for name, kind in tqdm([(name, found[name]) for name in chosen.kinds or found], leave=False, disable=None):
            end = time.monotonic() + chosen.seconds
            outcomes, slowest, faults = fuzz(
                kind, Path(folder), chosen.seed,
                lambda number, end=end: number < chosen.count if chosen.count else time.monotonic() < end)
            tqdm.write(f"{name:22}{outcomes.total():10,}{outcomes['refused']:10,}{outcomes['read']:10,}"
                       f"{outcomes['fault']:8,}{1000 * slowest:9.0f} ms")
            for fault in faults[:5]:
                tqdm.write(f"    {fault}")
            total += len(faults)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
