"""What the project's files are called, and how a file is written so that a crash never leaves a part of it."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

DETECTOR = Path(__file__).with_name("detector.pth")  # the weights file of the digit detector
EXPORT_ENDINGS = {"onnx": ".onnx", "onnx-int8": ".int8.onnx", "torchscript": ".torchscript", "pt2": ".pt2",
                  "safetensors": ".safetensors", "html": ".html"}
STALE_SECONDS = 3600
CHECKSUM = "sha256"  # the entry of a JSON file that holds the checksum of all others


def beside(path: Path, ending: str) -> Path:
    """The file that belongs to a weights file: for MNIST-MODEL.pth and .checkpoint, MNIST-MODEL.checkpoint."""
    return path.with_name(path.name.removesuffix(".pth") + ending)


def checkpoint_path(model_path: Path) -> Path:
    """The checkpoint of the training that writes this weights file."""
    return beside(model_path, ".checkpoint")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file by `data` in one step.

    The folder is created where it is missing. An existing file keeps its permissions. A temporary
    file that a killed writer left behind is deleted once it is an hour old. Raises OSError, which
    names `path`, if the file cannot be written: the disk is full, or the folder is read-only.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another writer may delete it at the same time
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    # not mkstemp: it would make a new file readable by its owner alone
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name survives a power cut only once the folder is synced; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class DamagedError(ValueError):
    """A file that does not hold what was written."""


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a dictionary as JSON, with its SHA-256 as the last entry. Raises OSError as `write_atomically` does."""
    plain = json.loads(json.dumps(content))  # JSON has no numbers as keys, for example
    write_atomically(path, (json.dumps(plain | {CHECKSUM: _digest(plain)}, indent=1) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_json` wrote. Raises DamagedError, which names the file, or FileNotFoundError."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        content = None  # no JSON
    if isinstance(content, dict) and CHECKSUM not in content:
        raise DamagedError(f"{path} has no checksum: it is damaged, or an older version wrote it")
    if not isinstance(content, dict) or content.pop(CHECKSUM) != _digest(content):
        raise DamagedError(f"{path} is damaged: it does not match its checksum; restore the file from a copy")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
