"""The weights file: a network's weights, and the metadata that one needs to use them.

Weights files and checkpoints are PyTorch archives with a SHA-256 for each of their entries, so that a
damaged file is refused and never loaded with other contents.
"""

import hashlib
import io
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mnist.files import write_atomically
from mnist.networks import DETECTORS, NETWORKS, DigitDetector

WEIGHTS_KEYS = {"architecture", "weights", "mean", "std"}
CHECKSUMS = "sha256"  # the entry that holds the checksums of all others
ARCHIVE_END = 22  # bytes of the record at a zip archive's end, where it has no comment, as PyTorch writes it


class WeightsError(ValueError):
    """A weights file or a checkpoint cannot be used; the message names the file and the reason."""


def save_weights(path: str | os.PathLike[str], model: nn.Module, /, *, mean: float, std: float,
                 **metadata: Any) -> None:
    """Write a network's weights and metadata as one file.

    The network's inputs were normalised with `mean` and `std`. `metadata` are further plain values to
    keep, such as the settings of the training and the measured accuracy. The file is written in one
    step, and `torch.load(path, weights_only=True)` opens it without this project. Raises ValueError
    if the file could not be loaded again (a fact is no plain value, for example), and OSError
    if it cannot be written. After an error the previous file is unchanged.
    """
    weights = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in model.state_dict().items()}
    own = {"architecture": type(model).__name__, "mean": float(mean), "std": float(std), "weights": weights}
    content = own | metadata | own  # `own` again, so that no other entry can replace what loading relies on
    try:
        data = pack(content)
    except Exception as error:
        raise ValueError(f"{path} was not written: one of its metadata cannot be saved ({error})") from error
    _parse(unpack(data, path), path, {**NETWORKS, **DETECTORS})
    write_atomically(path, data)


def load_weights(path: str | os.PathLike[str]) -> tuple[nn.Sequential, dict[str, Any]]:
    """Read a weights file: the network on the CPU, in evaluation mode, and the file's metadata.

    The metadata include "architecture", "mean" and "std". Nothing in the file is executed. Raises
    WeightsError for a file that is damaged, belongs to an unknown network, or holds anything but
    tensors and plain values; FileNotFoundError if there is no file; OSError if it cannot be
    read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: run workspace.ipynb, which trains and saves it")
    return cast(tuple[nn.Sequential, dict[str, Any]], _load(path, NETWORKS))


def parse_weights(data: bytes, name: str) -> tuple[nn.Sequential, dict[str, Any]]:
    """What `load_weights` gives for a file of these bytes. Raises WeightsError, which calls the file `name`."""
    return cast(tuple[nn.Sequential, dict[str, Any]], _parse(unpack(data, name), name, NETWORKS))


def load_detector(path: str | os.PathLike[str]) -> tuple[DigitDetector, dict[str, Any]]:
    """Read a digit detector's weights file, as `load_weights` reads a network's, with the same errors."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: run_model.py --mode train-detector makes it")
    return cast(tuple[DigitDetector, dict[str, Any]], _load(path, DETECTORS))


def _load(path: str | os.PathLike[str], networks: Mapping[str, type[nn.Module]]) -> tuple[nn.Module, dict[str, Any]]:
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a directory, not a weights file")
    return _parse(unpack(Path(path).read_bytes(), path), path, networks)


def pack(content: dict[str, Any]) -> bytes:
    """The bytes of an archive that holds `content`, a dictionary of tensors and plain values, and its checksums."""
    buffer = io.BytesIO()
    torch.save(content | {CHECKSUMS: checksums(content)}, buffer)
    return buffer.getvalue()


def unpack(data: bytes, path: str | os.PathLike[str]) -> Any:
    """What `pack` made `data` of; error messages name `path`.

    Nothing is executed. Raises WeightsError for damaged bytes, and for bytes that hold anything but
    tensors and plain values. Warns for an archive without checksums, which older versions saved: only
    the CRC-32 of its parts can then show damage.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()  # torch.load does not compare the CRC-32 of each part
    except Exception as error:  # zipfile raises half a dozen types for damaged files
        raise WeightsError(f"{path} is truncated, damaged or no weights file at all") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: its part {damaged!r} does not match its checksum; restore the file "
                           f"from a copy, or train again")
    if data[-ARCHIVE_END:][:4] != b"PK\5\6":
        raise WeightsError(f"{path} is damaged: other bytes follow the end of its archive; restore the file from a "
                           f"copy, or train again")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen types for damaged files
        if isinstance(error, pickle.UnpicklingError) and " GLOBAL " in str(error):
            raise WeightsError(f"{path} holds more than tensors and plain values, so it was not read") from error
        raise WeightsError(f"{path} is truncated, damaged or no weights file at all") from error
    if isinstance(content, dict) and CHECKSUMS in content:
        _compare(content.pop(CHECKSUMS), content, path)
    elif isinstance(content, dict):
        warnings.warn(f"{path} was saved by an older version, without checksums: damage cannot be ruled out",
                      stacklevel=3)
    return content


def checksums(content: dict[Any, Any]) -> dict[str, str]:
    """The SHA-256, in hexadecimal, of each entry of a dictionary and of the dictionaries in it.

    An entry's name is made of its keys, as in "weights.conv1.weight". The checksum covers keys, types,
    shapes and values.
    """
    return {".".join(map(str, keys)): _checksum(keys, value) for keys, value in _entries(content)}


def _entries(content: dict[Any, Any], keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _entries(value, (*keys, key))
        else:
            yield (*keys, key), value


def _checksum(keys: tuple[Any, ...], value: Any) -> str:
    sha256 = hashlib.sha256(repr(keys).encode())

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            sha256.update(f"{value.dtype} {tuple(value.shape)} {value.layout};".encode())
            sha256.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict | list | tuple):
            sha256.update(f"{type(value).__name__} {len(value)};".encode())
            for part in (part for item in value.items() for part in item) if isinstance(value, dict) else value:
                add(part)
        else:
            sha256.update(f"{type(value).__name__} {value!r};".encode())

    add(value)
    return sha256.hexdigest()


def _compare(stored: Any, content: dict[Any, Any], path: str | os.PathLike[str]) -> None:
    """Raise WeightsError, which names the first entry that differs, if the checksums are not those of `content`."""
    try:
        found = checksums(content)
    except Exception as error:  # what `pack` never writes, a sparse tensor for example
        raise WeightsError(f"{path} holds entries of an unknown kind") from error
    if stored == found:
        return
    known = stored if isinstance(stored, dict) else {}
    odd = next((name for name in {**found, **known} if found.get(name) != known.get(name)), "its content")
    raise WeightsError(f"{path} is damaged: {str(odd).removeprefix('weights.')} does not match its checksum; restore "
                       f"the file from a copy, or train again")


def _parse(content: Any, path: str | os.PathLike[str],
           networks: Mapping[str, type[nn.Module]]) -> tuple[nn.Module, dict[str, Any]]:
    """Check the content of a weights file for one of these networks, and return what `load_weights` returns."""
    if not isinstance(content, dict) or not content.keys() >= WEIGHTS_KEYS:
        raise WeightsError(f"{path} is not one of this project's weights files: "
                           f"those hold {', '.join(sorted(WEIGHTS_KEYS))}")
    if "doubt" in content and "ood" not in content:  # the names in files from before November 2026
        former = content.pop("doubt")
        content["ood"] = {"weights": former.get("weights"), "threshold": former.get("limit")} \
            if isinstance(former, dict) else former
    mean, std = content["mean"], content["std"]
    if not (isinstance(mean, float) and isinstance(std, float) and math.isfinite(mean) and 0 < std < math.inf):
        raise WeightsError(f"{path} has an unusable mean or standard deviation: {mean!r}, {std!r}")
    temperature, ood = content.get("temperature", 1.0), content.get("ood")
    if not (isinstance(temperature, float) and 0 < temperature < math.inf):
        raise WeightsError(f"{path} has an unusable temperature: {temperature!r}")
    if ood is not None and not (
            isinstance(ood, dict) and isinstance(ood.get("threshold"), float) and math.isfinite(ood["threshold"])
            and isinstance(ood.get("weights"), Tensor) and ood["weights"].isfinite().all()):
        raise WeightsError(f"{path} has an unusable calibration")
    model = _build(content["architecture"], content.pop("weights"), path, networks)
    return model.eval(), content


def _build(architecture: Any, weights: Any, path: str | os.PathLike[str],
           networks: Mapping[str, type[nn.Module]]) -> nn.Module:
    """The named network with these weights. Raises WeightsError if they do not fit."""
    if isinstance(architecture, str) and architecture in {**NETWORKS, **DETECTORS}.keys() - networks.keys():
        raise WeightsError(f"{path} is for {architecture}: here a file for {' or '.join(networks)} is needed")
    if not isinstance(architecture, str) or architecture not in networks:
        raise WeightsError(f"{path} is for the unknown network {architecture!r}: known are {', '.join(networks)}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(f"{path} holds no tensors under the name weights")
    # a large network may be stored in half precision
    weights = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in weights.items()}
    with torch.device("meta"):  # only shapes: takes no memory and draws no random numbers
        model = networks[architecture]()

    def kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
        return {name: (tuple(tensor.shape), tensor.dtype, tensor.layout) for name, tensor in tensors.items()}

    expected, found = kinds(model.state_dict()), kinds(weights)
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        names = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise WeightsError(f"{path} does not fit {architecture}: {names} are missing, unknown, or of another shape or "
                           f"type")
    if not all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in weights.values()):
        raise WeightsError(f"{path} holds weights that are not finite")
    model.load_state_dict(weights, assign=True)
    return model
