"""A picture of how a network computes: torchviz's graph in plain words, drawn by Graphviz."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib
import torch
from torch import nn
from torchviz import make_dot

from mnist.files import write_atomically

OPERATIONS = {
    "Convolution": "convolution", "Relu": "ReLU", "MaxPool2DWithIndices": "max pool",
    "View": "flatten", "T": "transpose", "Addmm": "matrix product + bias",
}
# pygraphviz sometimes crashes while its interpreter shuts down: so it runs in a process of its own that exits at once
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
    """The computation graph of a network for one image (1, 1, 28, 28), in Graphviz's language.

    torchviz finds the graph; this function renames its operations in plain words. Blue nodes are
    inputs (the image and the parameters), grey nodes are computed, the green node is the result.
    """
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    source = make_dot(model(image), params={"image": image, **dict(model.named_parameters())}).source
    # each blue tensor reaches its operation through a node AccumulateGrad: connect the two directly
    for tensor, gradient in re.findall(r"(\d+) -> (\d+)\n\t\2 \[label=AccumulateGrad\]", source):
        source = re.sub(rf"\b{gradient}\b", tensor, source)
    source = re.sub(r"\t(\d+) -> \1\n|\t\d+ \[label=AccumulateGrad\]\n", "", source)
    source = re.sub(r"label=(\w+)Backward\d+",
                    lambda match: f'label="{OPERATIONS.get(match[1], match[1])}"', source)
    source = source.replace('label="\n (', 'label="logits\n(').replace("\n (", "\n(")
    return source.replace("fontname=monospace fontsize=10", 'fontname="DejaVu Sans" fontsize=12')


def draw_graph(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a network's computation graph as a PNG file, drawn by Graphviz.

    The installed `dot` draws it. Where there is none, or it fails, the Graphviz inside pygraphviz's
    wheel draws it. The font is matplotlib's, so it also works on a machine without fonts. Raises
    RuntimeError, with Graphviz's own message, if nothing could be drawn.
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
