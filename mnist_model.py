"""Networks for MNIST, a picture of how they compute, and the file that keeps their weights."""

import contextlib
import glob
import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchviz import make_dot

WEIGHTS_KEYS = {"architecture", "weights", "mean", "std"}
STALE_SECONDS = 3600


class MNIST_CNN(nn.Sequential):
    """Two convolutions and two linear layers: (N, 1, 28, 28) → ten scores (N, 10).

    21,840 parameters: 260 + 5,020 + 16,050 + 510. The scores are logits; softmax makes
    probabilities of them.
    """

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 10, kernel_size=5),   # (N, 10, 24, 24)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),                   # (N, 10, 12, 12)
            conv2=nn.Conv2d(10, 20, kernel_size=5),  # (N, 20, 8, 8)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),                   # (N, 20, 4, 4)
            flatten=nn.Flatten(),                    # (N, 320)
            fc1=nn.Linear(320, 50),                  # (N, 50)
            fc2=nn.Linear(50, 10),                   # (N, 10)
        ))


class MNIST_CNN_Dropout(nn.Sequential):
    """MNIST_CNN with dropout after conv2 and fc1, and a ReLU between the linear layers; 21,840 parameters.

    The network of PyTorch's first MNIST example.
    """

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 10, kernel_size=5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(10, 20, kernel_size=5),
            drop1=nn.Dropout2d(),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(320, 50),
            relu3=nn.ReLU(),
            drop2=nn.Dropout(),
            fc2=nn.Linear(50, 10),
        ))


class ThreeConv(nn.Sequential):
    """Three convolutions without pooling, and a linear layer that has most of the 365,514 parameters."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 32, kernel_size=3),   # (N, 32, 26, 26)
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, kernel_size=3),  # (N, 64, 24, 24)
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 64, kernel_size=3),  # (N, 64, 22, 22)
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),                    # (N, 30976)
            fc=nn.Linear(30_976, 10),
        ))


class MNISTNet(nn.Sequential):
    """Two padded convolutions, each pooled, and a wide linear layer; 421,642 parameters."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 32, kernel_size=3, padding=1),   # (N, 32, 28, 28)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),                              # (N, 32, 14, 14)
            conv2=nn.Conv2d(32, 64, kernel_size=3, padding=1),  # (N, 64, 14, 14)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),                              # (N, 64, 7, 7)
            flatten=nn.Flatten(),                               # (N, 3136)
            fc1=nn.Linear(3136, 128),
            relu3=nn.ReLU(),
            drop=nn.Dropout(),
            fc2=nn.Linear(128, 10),
        ))


class SixConv(nn.Sequential):
    """Six small convolutions with batch norm, and the mean of each of 32 channels: 18,482 parameters.

    The third and the fifth begin after a pooling that halves the picture.
    """

    def __init__(self) -> None:
        layers, channels = OrderedDict(), 1
        for number, width in enumerate((8, 8, 16, 16, 32, 32), 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            if number in (2, 4):
                layers[f"pool{number}"] = nn.MaxPool2d(2)  # to 14 x 14, to 7 x 7
            channels = width
        layers["mean"] = nn.AdaptiveAvgPool2d(1)           # (N, 32, 1, 1)
        layers["flatten"] = nn.Flatten()                   # (N, 32)
        layers["fc"] = nn.Linear(32, 10)
        super().__init__(layers)


NETWORKS: dict[str, type[nn.Module]] = {network.__name__: network for network in (
    MNIST_CNN, MNIST_CNN_Dropout, ThreeConv, MNISTNet, SixConv)}


def with_batch_norm(model: nn.Sequential) -> nn.Sequential:
    """The same layers, with batch norm (Ioffe & Szegedy 2015) behind each that has weights, but for the last one."""
    layers: list[nn.Module] = []
    for layer in model:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*layers[:-1])


def fold_batch_norm(normed: nn.Sequential, model: nn.Sequential) -> None:
    """Give `model` the weights with which it computes what `with_batch_norm(model)`, in evaluation mode, computes."""
    layers = iter(normed.eval())
    with torch.no_grad():
        for own in model:
            layer = next(layers)
            if isinstance(layer, nn.Conv2d):
                layer = fuse_conv_bn_eval(layer, next(layers))
            elif isinstance(layer, nn.Linear) and own is not model[-1]:
                layer = fuse_linear_bn_eval(layer, next(layers))
            own.load_state_dict(layer.state_dict())


class WeightsError(ValueError):
    """A file of weights, or a checkpoint, cannot be used; the message names the file and says why."""


def save_weights(path: str | os.PathLike, model: nn.Module, /, *, mean: float, std: float,
                 **facts: Any) -> None:
    """Write a network's weights, and what one must know to use them, as one file.

    `mean` and `std` are those its inputs were normalised with; `facts` is whatever else should
    travel along (how it was trained, what accuracy was measured). The file appears whole or not
    at all, and `torch.load(path, weights_only=True)` opens it without this project. Raises
    ValueError where it could not be read back (a fact that is no plain value, say), and OSError
    where it cannot be written; the file that was there before is then as it was.
    """
    weights = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in model.state_dict().items()}
    own = {"architecture": type(model).__name__, "mean": float(mean), "std": float(std), "weights": weights}
    content = own | facts | own  # facts come last, and cannot replace what loading relies on
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except Exception as error:
        raise ValueError(f"{path} was not written: it would hold what cannot be saved ({error})") from error
    _parse(plain_values(buffer.getvalue(), path), path)
    write_atomically(path, buffer.getvalue())


def load_weights(path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """Read a weights file: the network on the CPU, in evaluation mode, and the file's other facts.

    The facts hold at least "architecture", "mean" and "std". Nothing in the file is ever
    executed. Raises WeightsError for a file that is damaged, of another architecture, or holds
    anything but tensors and plain values; OSError where it cannot be read, FileNotFoundError
    where there is none.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: run workspace.ipynb (or `make`), which trains and saves it")
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a directory, not a weights file")
    return _parse(plain_values(Path(path).read_bytes(), path), path)


def plain_values(data: bytes, path: str | os.PathLike) -> Any:
    """What torch.save made `data` from, if that is tensors and plain values alone; `path` is for the messages.

    Nothing is executed. Raises WeightsError for damaged data, and for anything else in it.
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen types for damaged files
        if isinstance(error, pickle.UnpicklingError) and " GLOBAL " in str(error):
            raise WeightsError(f"{path} holds more than tensors and plain values, so it was not read") from error
        raise WeightsError(f"{path} is truncated, damaged or no weights file at all") from error


def _parse(content: Any, path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """What `load_weights` returns, from what the file holds."""
    if not isinstance(content, dict) or not content.keys() >= WEIGHTS_KEYS:
        raise WeightsError(f"{path} is not one of this project's weights files: "
                           f"those hold {', '.join(sorted(WEIGHTS_KEYS))}")
    mean, std = content["mean"], content["std"]
    if not (isinstance(mean, float) and isinstance(std, float) and math.isfinite(mean) and 0 < std < math.inf):
        raise WeightsError(f"{path} has an unusable mean or deviation: {mean!r}, {std!r}")
    temperature, doubt = content.get("temperature", 1.0), content.get("doubt")
    if not (isinstance(temperature, float) and 0 < temperature < math.inf):
        raise WeightsError(f"{path} has an unusable temperature: {temperature!r}")
    if doubt is not None and not (
            isinstance(doubt, dict) and isinstance(doubt.get("limit"), float) and math.isfinite(doubt["limit"])
            and isinstance(doubt.get("weights"), Tensor) and doubt["weights"].isfinite().all()):
        raise WeightsError(f"{path} has an unusable calibration")
    model = _build(content["architecture"], content.pop("weights"), path)
    return model.eval(), content


def _build(architecture: Any, weights: Any, path: str | os.PathLike) -> nn.Module:
    """The named network with these weights, or WeightsError."""
    if not isinstance(architecture, str) or architecture not in NETWORKS:
        raise WeightsError(f"{path} is for the unknown network {architecture!r}: known are {', '.join(NETWORKS)}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(f"{path} holds no tensors under the name weights")
    with torch.device("meta"):  # shapes alone: no memory, and no random numbers drawn
        model = NETWORKS[architecture]()

    def kinds(tensors: dict[str, Tensor]) -> dict[str, tuple]:
        return {name: (tuple(tensor.shape), tensor.dtype, tensor.layout) for name, tensor in tensors.items()}

    expected, found = kinds(model.state_dict()), kinds(weights)
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise WeightsError(f"{path} does not fit {architecture}: {', '.join(odd)} are missing, strange, "
                           f"or of another shape or type")
    if not all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in weights.values()):
        raise WeightsError(f"{path} holds weights that are not finite")
    model.load_state_dict(weights, assign=True)
    return model


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Replace a file by these bytes in one step: a reader, or a crash, meets the old or the new one.

    The folder is made where it is missing; an existing file's permissions are kept. A temporary
    file that a killed writer left is swept away once it is an hour old. Raises OSError that
    names `path` where it cannot be written: a full disk, a folder that is read-only.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another writer may sweep as well
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    # not mkstemp, which would leave a new file readable by its owner alone
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
    if os.name == "posix":  # the new name is safe only once the folder is; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


OPERATIONS = {
    "Convolution": "convolution", "Relu": "ReLU", "MaxPool2DWithIndices": "max pool",
    "View": "flatten", "T": "transpose", "Addmm": "matrix product + bias",
}
# pygraphviz has been seen to crash in its interpreter's shutdown: hence its own process, left at once
PYGRAPHVIZ = """
import os, sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format="png", prog="dot"))
sys.stdout.buffer.flush()
os._exit(0)
"""
FONTCONFIG = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""


def graph_source(model: nn.Module) -> str:
    """The computation graph of a network for (1, 1, 28, 28), in Graphviz's language and plain words.

    It is torchviz's graph: blue is what is given (an image, the parameters), grey what is
    computed, green the result.
    """
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    source = make_dot(model(image), params={"image": image, **dict(model.named_parameters())}).source
    # each blue tensor reaches its operation through a node AccumulateGrad: let it point there itself
    for tensor, gradient in re.findall(r"(\d+) -> (\d+)\n\t\2 \[label=AccumulateGrad\]", source):
        source = re.sub(rf"\b{gradient}\b", tensor, source)
    source = re.sub(r"\t(\d+) -> \1\n|\t\d+ \[label=AccumulateGrad\]\n", "", source)
    source = re.sub(r"label=(\w+)Backward\d+",
                    lambda match: f'label="{OPERATIONS.get(match[1], match[1])}"', source)
    source = source.replace('label="\n (', 'label="scores\n(').replace("\n (", "\n(")
    return source.replace("fontname=monospace fontsize=10", 'fontname="DejaVu Sans" fontsize=12')


def draw_graph(model: nn.Module, path: str | os.PathLike) -> None:
    """Save a network's computation graph as a PNG, drawn by Graphviz.

    An installed `dot` does it where there is a working one, else the Graphviz inside
    pygraphviz's wheel; letters come from matplotlib's own font, so a machine without fonts draws
    them as well. Raises RuntimeError with Graphviz's words where it draws nothing.
    """
    commands = [[sys.executable, "-c", PYGRAPHVIZ]]
    if dot := shutil.which("dot"):
        commands.insert(0, [dot, "-Tpng"])
    source = graph_source(model).encode()
    with tempfile.TemporaryDirectory() as folder:
        fonts = Path(folder, "fonts.conf")
        fonts.write_text(FONTCONFIG.format(fonts=escape(str(Path(matplotlib.get_data_path(), "fonts", "ttf"))),
                                           cache=escape(folder)), encoding="utf-8")
        for command in commands:
            done = subprocess.run(command, input=source, capture_output=True,
                                  env=os.environ | {"FONTCONFIG_FILE": str(fonts)})
            if done.stdout.startswith(b"\x89PNG") and done.stdout.endswith(b"IEND\xaeB`\x82"):
                write_atomically(path, done.stdout)
                return
    raise RuntimeError(f"Graphviz drew no picture: {done.stderr.decode(errors='replace').strip()}")
