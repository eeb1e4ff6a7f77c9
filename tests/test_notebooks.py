"""The notebooks as they are stored, what they leave behind, and what else they can be run on.

Running them, and comparing their outputs, is nbval's part: pyproject.toml has its flags.
"""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

from mnist_model import load_weights
from mnist_train import evaluate
from mnist_utils import FILES, load_split, write_idx

ROOT = Path(__file__).parents[1]
FIGURES = {"loss.png": (1350, 525), "confusion.png": (900, 780), "pred.png": (1350, 660),
           "mnist_cnn_graph.png": (655, 930)}
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|Users|usr|opt|var)/|[A-Z]:\\\\")


@pytest.fixture(scope="module", params=["workspace.ipynb", "playground.ipynb"])
def cells(request) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(ROOT / request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


@pytest.fixture(params=["committed", "made by this session"])
def made(request, output) -> Path:
    """The folder with the weights and figures, both as committed and as just made."""
    if request.param == "committed":
        return ROOT
    if not (output / "figures").exists():
        pytest.skip("workspace.ipynb is not part of this session")
    return output


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_stored_outputs_are_from_one_clean_run(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not [text for text in texts if MACHINE_PATH.search(text)]


def test_each_code_cell_is_short_and_led_in_by_a_sentence(cells):
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and before.source.rstrip()[-1] in ".:?", cell.source
            assert len(cell.source.splitlines()) <= 22, cell.source
    lengths = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
    assert np.median(lengths) <= 9


def test_what_is_not_compared_is_asserted(cells):
    ignored = [cell for cell in cells if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= len([cell for cell in cells if cell.cell_type == "code"]) / 4
    assert all("assert " in cell.source for cell in ignored)
    assert sum("parameters" in tags(cell) for cell in cells) == 1
    assert not {tag for cell in cells for tag in tags(cell)} - {"nbval-ignore-output", "parameters"}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_their_size_and_something_on_them(name, made):
    picture = Image.open(made / "figures" / name)
    assert picture.size == pytest.approx(FIGURES[name], rel=0.1)  # an installed dot lays out a little differently
    assert 0.02 < (np.asarray(picture.convert("L")) < 200).mean() < 0.6


def test_the_weights_reach_the_accuracy_that_they_state(made):
    model, facts = load_weights(made / "MNIST-MODEL.pth")
    _, accuracy = evaluate(model, *load_split("test", ROOT / "dataset"), mean=facts["mean"], std=facts["std"])
    assert accuracy == pytest.approx(facts["test_accuracy"], abs=2e-4)  # another processor may round otherwise
    assert facts["test_accuracy"] >= 0.992


def test_readme_notebook_and_weights_state_one_accuracy():
    _, facts = load_weights(ROOT / "MNIST-MODEL.pth")
    stated = f"{facts['test_accuracy']:.2%}"
    assert f"test accuracy {stated}" in (ROOT / "workspace.ipynb").read_text("utf-8")
    assert stated.replace("%", " %") in (ROOT / "README.md").read_text("utf-8")


def test_papermill_sets_parameters_data_and_folders(tmp_path, monkeypatch):
    """The same notebooks on another, small data set, with other settings and other folders."""
    monkeypatch.setenv("MNIST_OUTPUT", str(tmp_path / "unused"))
    images, labels = load_split("test", ROOT / "dataset")
    for split, part in (("train", slice(0, 1500)), ("test", slice(5000, 5600))):
        for name, array in zip(FILES[split], (images[part], labels[part])):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_idx(tmp_path / name, array)
    settings = {"DATASET": str(tmp_path), "MODEL_PATH": str(tmp_path / "weights" / "small.pth")}
    training = {"EPOCHS": 4, "BATCH_SIZE": 50, "VALIDATION": 300, "SEED": 7, "FIGURES": str(tmp_path / "pictures")}
    looking = {"CHOSEN": [599], "FOLLOWED": 5}
    for name, parameters in (("workspace", settings | training), ("playground", settings | looking)):
        papermill.execute_notebook(ROOT / f"{name}.ipynb", tmp_path / f"{name}.ipynb", parameters, cwd=ROOT,
                                   progress_bar=False)
    _, facts = load_weights(tmp_path / "weights" / "small.pth")
    assert facts["training"]["epochs"] == 4 and facts["training"]["seed"] == 7
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(FIGURES)
    assert not (tmp_path / "unused").exists()


def test_a_playground_without_weights_says_what_to_do(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"nothing\.pth is missing: run workspace\.ipynb"):
        papermill.execute_notebook(ROOT / "playground.ipynb", tmp_path / "playground.ipynb",
                                   {"MODEL_PATH": str(tmp_path / "nothing.pth")}, cwd=ROOT, progress_bar=False)
