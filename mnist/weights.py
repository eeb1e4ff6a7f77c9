"""The weights file: a network's weights, and the metadata that one needs to use them."""

import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist.files import write_atomically
from mnist.networks import NETWORKS

WEIGHTS_KEYS = {"architecture", "weights", "mean", "std"}


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
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except Exception as error:
        raise ValueError(f"{path} was not written: one of its metadata cannot be saved ({error})") from error
    _parse(plain_values(buffer.getvalue(), path), path)
    write_atomically(path, buffer.getvalue())


def load_weights(path: str | os.PathLike[str]) -> tuple[nn.Sequential, dict[str, Any]]:
    """Read a weights file: the network on the CPU, in evaluation mode, and the file's metadata.

    The metadata include "architecture", "mean" and "std". Nothing in the file is executed. Raises
    WeightsError for a file that is damaged, belongs to an unknown network, or holds anything but
    tensors and plain values; FileNotFoundError if there is no file; OSError if it cannot be
    read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: run workspace.ipynb, which trains and saves it")
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a directory, not a weights file")
    return _parse(plain_values(Path(path).read_bytes(), path), path)


def plain_values(data: bytes, path: str | os.PathLike[str]) -> Any:
    """Undo `torch.save` for bytes that hold tensors and plain values only; error messages name `path`.

    Nothing is executed. Raises WeightsError for damaged bytes, and for bytes that hold anything else.
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen types for damaged files
        if isinstance(error, pickle.UnpicklingError) and " GLOBAL " in str(error):
            raise WeightsError(f"{path} holds more than tensors and plain values, so it was not read") from error
        raise WeightsError(f"{path} is truncated, damaged or no weights file at all") from error


def _parse(content: Any, path: str | os.PathLike[str]) -> tuple[nn.Sequential, dict[str, Any]]:
    """Check a weights file's content, and return what `load_weights` returns."""
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
    model = _build(content["architecture"], content.pop("weights"), path)
    return model.eval(), content


def _build(architecture: Any, weights: Any, path: str | os.PathLike[str]) -> nn.Sequential:
    """The named network with these weights. Raises WeightsError if they do not fit."""
    if not isinstance(architecture, str) or architecture not in NETWORKS:
        raise WeightsError(f"{path} is for the unknown network {architecture!r}: known are {', '.join(NETWORKS)}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(f"{path} holds no tensors under the name weights")
    with torch.device("meta"):  # only shapes: takes no memory and draws no random numbers
        model = NETWORKS[architecture]()

    def kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
        return {name: (tuple(tensor.shape), tensor.dtype, tensor.layout) for name, tensor in tensors.items()}

    expected, found = kinds(model.state_dict()), kinds(weights)
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise WeightsError(f"{path} does not fit {architecture}: {', '.join(odd)} are missing, unknown, "
                           f"or of another shape or type")
    if not all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in weights.values()):
        raise WeightsError(f"{path} holds weights that are not finite")
    model.load_state_dict(weights, assign=True)
    return model
