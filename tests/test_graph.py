"""The picture of how a network computes."""

import shutil
import sys

import pytest
from PIL import Image

import mnist.graph
from mnist.graph import draw_graph, graph_source
from mnist.networks import MNIST_CNN


def test_the_graph_speaks_in_plain_words():
    source = graph_source(MNIST_CNN())
    for word in ("image\n(1, 1, 28, 28)", "conv1.weight\n(10, 1, 5, 5)", "convolution", "ReLU", "max pool", "flatten",
                 "matrix product + bias", "logits\n(1, 10)"):
        assert word in source
    assert "Backward" not in source and "Accumulate" not in source


@pytest.mark.parametrize("dot", ["installed", "missing", "broken"])
def test_the_graph_is_drawn_whatever_dot_there_is(dot, tmp_path, monkeypatch):
    if dot == "installed" and not shutil.which("dot"):
        pytest.skip("no dot is installed here")
    if dot != "installed":
        found = {"missing": None, "broken": sys.executable}[dot]
        monkeypatch.setattr(mnist.graph.shutil, "which", lambda name: found)
    draw_graph(MNIST_CNN(), tmp_path / "new" / "graph.png")
    picture = Image.open(tmp_path / "new" / "graph.png").convert("L")
    assert picture.width > 400 and picture.height > 600
    assert 0.01 < sum(picture.histogram()[:64]) / (picture.width * picture.height) < 0.2  # letters and lines


def test_a_failing_graphviz_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.graph, "graph_source", lambda model: "no graph")
    with pytest.raises(RuntimeError, match="Graphviz drew no picture"):
        draw_graph(MNIST_CNN(), tmp_path / "graph.png")
    assert not (tmp_path / "graph.png").exists()
