"""Read MNIST, or any data set of its shape, from raw IDX files.

    >>> images, labels = load_split("train")    # (60000, 28, 28) and (60000,), both uint8
    >>> mean, std = mean_std(images)            # about 0.1307 and 0.3081

IDX is the format in which Yann LeCun, Corinna Cortes and Christopher Burges published MNIST:
two zero bytes, one byte for the element type, one byte for the number of dimensions, each
dimension as a big-endian 32-bit count, and then the elements in C order, big-endian as well.
`dataset/README.md` shows it in ten lines.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

IDX_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"), 0x09: np.dtype(">i1"), 0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"), 0x0D: np.dtype(">f4"), 0x0E: np.dtype(">f8")}
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_MAX_RATIO = 1032  # zlib's technical notes: no stream expands by more

FILES = {
    "train": ("train/train-images-idx3-ubyte", "train/train-labels-idx1-ubyte"),
    "test": ("test/t10k-images-idx3-ubyte", "test/t10k-labels-idx1-ubyte"),
}
PUBLISHED = {  # the SHA-256 of MNIST's files, unzipped
    "train/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
CLASSES = 10
IMAGE_SHAPE = (28, 28)

Split = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8, and labels (N,) or their probabilities (N, 10)


class IDXError(ValueError):
    """A file is not a valid IDX file, or not the expected one; the message names the file and the reason."""


def open_idx(path: str | os.PathLike[str]) -> gzip.GzipFile | io.BufferedReader:
    """Open an IDX file as a stream of bytes, unzipped where it is gzipped.

    Raises IDXError for a directory, and OSError if the file cannot be opened.
    """
    if Path(path).is_dir():
        raise IDXError(f"{path} is a directory, not an IDX file")
    with open(path, "rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return gzip.open(path) if zipped else open(path, "rb")


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, gzipped or not, as an array in native byte order.

    The file is read straight into the array, so reading takes no more memory than the array. Raises
    IDXError if anything in the file is wrong, FileNotFoundError if there is no file, and OSError
    if it cannot be opened.
    """
    with open_idx(path) as stream:
        size = os.path.getsize(path)
        if not isinstance(stream, gzip.GzipFile):
            return _read_idx(stream, path, size, exact=True)
        try:
            return _read_idx(stream, path, size * DEFLATE_MAX_RATIO, exact=False)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise IDXError(f"{path} is a damaged gzip file: {error}") from error


def _read_idx(stream: gzip.GzipFile | io.BufferedReader, path: str | os.PathLike[str], size: int,
              exact: bool) -> np.ndarray:
    """Read one IDX array from a stream of `size` bytes, or, if not `exact`, of at most `size` bytes."""
    header = stream.read(4)
    if not header:
        raise IDXError(f"{path} is empty")
    if len(header) < 4 or header[:2] != b"\0\0":
        raise IDXError(f"{path} is not an IDX file: it begins with {header.hex(' ')}, not 00 00")
    code, rank = header[2:]
    if code not in IDX_DTYPES:
        raise IDXError(f"{path} has the unknown IDX element type 0x{code:02x}")
    dimensions = stream.read(4 * rank)
    if len(dimensions) < 4 * rank:
        raise IDXError(f"{path} is truncated inside its header of {rank} dimensions")
    shape, dtype = struct.unpack(f">{rank}I", dimensions), IDX_DTYPES[code]

    expected, room = math.prod(shape) * dtype.itemsize, size - 4 - 4 * rank
    promise = f"its header promises {expected:,} bytes for the shape {shape}"
    if expected > room:
        raise IDXError(f"{path} is truncated or has a wrong header: {promise}, "
                       f"but the file holds at most {room:,}")
    if exact and expected < room:
        raise IDXError(f"{path} has {room - expected:,} bytes left over: {promise}")
    try:
        array = np.empty(shape, dtype)
    except ValueError as error:  # more dimensions, or a longer one, than NumPy can index
        raise IDXError(f"{path} has a shape that NumPy cannot hold: {error}") from error

    buffer = array.reshape(-1).view(np.uint8)
    filled = 0
    while filled < expected and (count := stream.readinto(buffer[filled:filled + 2**20].data)):
        filled += count
    if filled < expected:
        raise IDXError(f"{path} is truncated: {promise}, only {filled:,} are there")
    if stream.read(1):
        raise IDXError(f"{path} has bytes left over: {promise}")
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder())
    return array


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array of one of IDX's six element types as an uncompressed IDX file.

    The folder is made where it is missing. Raises ValueError for another element type, or for a
    dimension too long for 32 bits.
    """
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder(">")
    codes = {known: code for code, known in IDX_DTYPES.items()}
    if dtype not in codes:
        names = ", ".join(known.name for known in codes)
        raise ValueError(f"IDX has no element type for {array.dtype}: it knows {names}")
    if any(length >= 2**32 for length in array.shape):
        raise ValueError(f"a dimension of an IDX file is a 32-bit number: the shape {array.shape} does not fit")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack(f">BBBB{array.ndim}I", 0, 0, codes[dtype], array.ndim, *array.shape))
        array.astype(dtype, copy=False).tofile(file)


def load_split(split: str, root: str | os.PathLike[str] = "dataset") -> tuple[np.ndarray, np.ndarray]:
    """Read the images (N, 28, 28) and labels (N,) of "train" or "test", both uint8.

    `root` is a folder laid out as `dataset/` is. `FILES` names its four files; each may be gzipped, with
    `.gz` after its name. Raises FileNotFoundError for a missing file, IDXError for a damaged file or one
    of other contents, ValueError for another split.
    """
    if split not in FILES:
        raise ValueError(f"there is no split {split!r}: choose from {', '.join(FILES)}")
    images_path, labels_path = (find_idx(root, name) for name in FILES[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE:
        raise IDXError(f"{images_path} holds {images.dtype} of the shape {images.shape}, "
                       f"not uint8 images of 28 x 28 pixels")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise IDXError(f"{labels_path} holds {labels.dtype} of the shape {labels.shape}, "
                       f"not one uint8 label per image")
    if len(images) != len(labels):
        raise IDXError(f"{images_path} holds {len(images):,} images, "
                       f"but {labels_path} holds {len(labels):,} labels")
    if (labels >= CLASSES).any():
        first = int(np.argmax(labels >= CLASSES))
        raise IDXError(f"{labels_path} has the label {labels[first]} at index {first}: "
                       f"labels run from 0 to {CLASSES - 1}")
    return images, labels


def load_classes(root: str | os.PathLike[str] = "dataset") -> list[str]:
    """The names of the ten labels: the lines of `classes.txt` in `root`, or the digits where there is no such file.

    Raises IDXError if the file does not have one name for each label.
    """
    path = Path(root, "classes.txt")
    if not path.exists():
        return [str(label) for label in range(CLASSES)]
    names = [line.strip() for line in path.read_text("utf-8").strip().splitlines()]
    if len(names) != CLASSES or not all(names):
        raise IDXError(f"{path} must have a name in each of {CLASSES} lines, one for each label; it has {len(names)}")
    return names


def hold_out(images: np.ndarray, labels: np.ndarray, count: int = 5_000, seed: int = 0) -> tuple[Split, Split]:
    """Split training data at random into a training set and a validation set, stratified by label.

    `count` images are held out for validation, or a sixth of all images if that is fewer. Raises
    ValueError if there are too few images for that: each label needs one in both sets.
    """
    from sklearn.model_selection import train_test_split  # slow to import, and reading data does not need it

    count = min(count, len(images) // 6)
    try:
        train_images, val_images, train_labels, val_labels = train_test_split(
            images, labels, test_size=count, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{len(images):,} images are too few to train on and to hold out {count:,} of them "
                         f"for validation, with each label in both") from error
    return (train_images, train_labels), (val_images, val_labels)


def load_training(root: str | os.PathLike[str] = "dataset", seed: int = 0) -> tuple[Split, Split, float, float]:
    """The training data, the validation data, and the mean and standard deviation of all their pixels.

    See `load_split`, `hold_out` and `mean_std` for what they are, and for the errors raised.
    """
    images, labels = load_split("train", root)
    return *hold_out(images, labels, seed=seed), *mean_std(images)


def digest(*arrays: np.ndarray) -> str:
    """The SHA-256 of the bytes of some arrays, in hexadecimal: equal for equal data."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()


def is_published(root: str | os.PathLike[str] = "dataset") -> bool:
    """Whether the four files of a data set are MNIST's published ones, by their SHA-256.

    Raises FileNotFoundError for a missing file, OSError if one cannot be read.
    """
    for name, expected in PUBLISHED.items():
        with open_idx(find_idx(root, name)) as stream:
            if hashlib.file_digest(cast(io.BufferedReader, stream), "sha256").hexdigest() != expected:
                return False
    return True


def find_idx(root: str | os.PathLike[str], name: str) -> Path:
    """Find a file of FILES below `root`, or directly in `root`, plain or gzipped; raises FileNotFoundError for none."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"there is no folder {root}: name one that is laid out as dataset/ is")
    path = Path(root, name).resolve()
    for folder in (path.parent, Path(root).resolve()):  # some data sets have all four files in one folder
        for candidate in (folder / path.name, folder / f"{path.name}.gz"):
            if candidate.exists():
                return candidate
    raise FileNotFoundError(
        f"{path} is missing, and so is {path.name}.gz: for MNIST itself "
        f"`git checkout -- dataset` restores it, for other data see dataset/README.md")


def mean_std(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 images (N, ...), on the scale 0 to 1.

    Both follow from the histogram h of the 256 grey levels v, in integers, and are exact up to the last
    rounding: mean = Σhv / Σh, variance = Σhv² / Σh - mean². Raises ValueError if the pixels have
    another type, or there are none.
    """
    if images.dtype != np.uint8 or not images.size:
        raise ValueError(f"needs at least one uint8 pixel, got {images.dtype} of the shape {images.shape}")
    # in blocks, because bincount widens its input to 64 bits
    blocks = np.array_split(images.reshape(-1), math.ceil(images.size / 2**20))
    histogram = sum(np.bincount(block, minlength=256) for block in blocks)
    count, total, squares = (int(histogram @ np.arange(256) ** power) for power in range(3))
    return total / count / 255, math.sqrt(squares * count - total * total) / count / 255


def normalize(images: np.ndarray | Tensor, mean: float, std: float) -> Tensor:
    """Images (N, 28, 28) of grey levels 0 to 255 → the network's input (N, 1, 28, 28), float32.

    `mean` and `std` are on the scale 0 to 1, as `mean_std` returns them. Pixels with this mean and
    standard deviation get mean 0 and standard deviation 1.
    """
    # a tensor stays as it is: as_tensor would tie an exported program to one device
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(images)
    return (pixels.unsqueeze(1).float() - 255 * mean) / (255 * std)


def batches(indices: Tensor, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """The indices (N,) in random order, in batches of `size`; the last batch may be shorter.

    An epoch over indices needs no second copy of the images.
    """
    order = torch.randperm(len(indices), generator=generator).to(indices.device)
    yield from indices[order].split(size)
