"""The weights and figures that the notebooks make: the committed ones, and those that this test run has just made."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist.evaluate import evaluate
from mnist.weights import load_weights
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
FIGURES = {"loss.png": (1350, 525), "confusion.png": (900, 780), "pred.png": (1350, 677),
           "mnist_cnn_graph.png": (655, 930), "steps.png": (1350, 330)}


@pytest.fixture(params=["committed", "made by this test run"])
def made(request, output) -> Path:
    """The folder with the weights and figures, both as committed and as just made."""
    if request.param == "committed":
        return ROOT
    if not (output / "figures" / "loss.png").exists():
        pytest.skip("workspace.ipynb is not part of this test run")
    return output


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_have_their_size_and_something_on_them(figure, made):
    picture = Image.open(made / "figures" / figure)
    tolerance = 0.3 if figure == "mnist_cnn_graph.png" else 0.01  # each Graphviz measures letters its own way
    assert picture.size == pytest.approx(FIGURES[figure], rel=tolerance)
    assert 0.02 < (np.asarray(picture.convert("L")) < 200).mean() < 0.6


def test_the_weights_reach_the_accuracy_that_they_state(made):
    model, metadata = load_weights(made / "MNIST-MODEL.pth")
    _, accuracy = evaluate(model, *load_split("test", ROOT / "dataset"), mean=metadata["mean"], std=metadata["std"])
    assert accuracy == pytest.approx(metadata["test_accuracy"], abs=2e-4)  # another processor may round otherwise
    assert metadata["test_accuracy"] >= 0.992
