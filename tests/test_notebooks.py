"""The notebooks as they are stored, what they write, and what else they can be run on.

Running them, and comparing their outputs, is nbval's part: pyproject.toml has its flags.
"""

import ast
import gzip
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest

from mnist.study import uci_digits
from mnist.weights import load_weights
from mnist_utils import FILES, write_idx
from test_made import FIGURES

ROOT = Path(__file__).parents[1]
PAPERMILL = {"cwd": ROOT, "kernel_name": "python3", "progress_bar": False}
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|work|mnt|Users|usr|opt|var)/|\b[A-Z]:\\|~/")


@pytest.fixture(params=["workspace.ipynb", "playground.ipynb", "study/evidence.ipynb"])
def name(request) -> str:
    return request.param


@pytest.fixture
def cells(name) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_stored_outputs_are_from_one_clean_run(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_no_path_of_a_machine_is_stored(name):
    for path in ("/home/me/a", "saved in /tmp/a", r"C:\Users\me", "~/a"):
        assert MACHINE_PATH.search(path)
    notebook = nbformat.read(ROOT / name, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):
                output.get("data", {}).pop(kind, None)
    assert not MACHINE_PATH.search(nbformat.writes(notebook).replace("\\\\", "\\"))


def test_each_code_cell_is_short_and_led_in_by_a_sentence(cells):
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and before.source.rstrip()[-1] in ".:?", cell.source
            assert len(cell.source.splitlines()) <= 20, cell.source
    lengths = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
    assert np.median(lengths) <= 7


def test_what_is_not_compared_is_asserted(cells):
    ignored = [cell for cell in cells if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= len([cell for cell in cells if cell.cell_type == "code"]) / 4
    for cell in ignored:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))), cell.source
    assert sum("parameters" in tags(cell) for cell in cells) <= 1
    assert not {tag for cell in cells for tag in tags(cell)} - {"nbval-ignore-output", "parameters"}


def test_notebooks_and_weights_state_one_accuracy():
    _, metadata = load_weights(ROOT / "MNIST-MODEL.pth")
    stated = f"{metadata['test_accuracy']:.2%}"
    assert f"test accuracy {stated}" in (ROOT / "workspace.ipynb").read_text("utf-8")
    assert f"{stated} of the test images right" in (ROOT / "playground.ipynb").read_text("utf-8")


def test_the_readme_states_what_the_committed_notebook_shows():
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "workspace.ipynb"], cwd=ROOT).returncode
    if changed:
        pytest.skip("workspace.ipynb has been run here since it was committed")
    notebook = nbformat.read(ROOT / "workspace.ipynb", as_version=4)
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    readme = (ROOT / "README.md").read_text("utf-8")
    accuracy, low, high = re.search(r"test accuracy (.+)%, 95 % interval (.+)% to (.+)%", shown).groups()
    wrong = re.search(r"(\d+) of 10,000 images wrong", shown)[1]
    assert f"**{accuracy} %**" in readme
    assert f"{accuracy} % ({wrong} of 10,000 wrong; 95 % interval {low} % to {high} %)" in readme
    seconds = sum(map(float, re.findall(r"training loss \S+, (\S+) s\n", shown)))
    assert f"| {seconds:.0f} s |" in readme


def test_papermill_sets_parameters_data_and_folders(tmp_path, monkeypatch):
    """The same notebooks on a smaller data set with named classes, gzipped in part, with other settings and folders."""
    monkeypatch.setenv("MNIST_OUTPUT", str(tmp_path / "unused"))
    images, labels = uci_digits()
    for split, part in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        for name, array in zip(FILES[split], (images[part], labels[part])):
            write_idx(tmp_path / name, array)
            if split == "train":  # as Fashion-MNIST and others come
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
                (tmp_path / name).unlink()
    names = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
    (tmp_path / "classes.txt").write_text("\n".join(names), "utf-8")
    settings = {"DATASET": str(tmp_path), "MODEL_PATH": str(tmp_path / "weights" / "small.pth"),
                "FIGURES": str(tmp_path / "pictures")}
    training = {"EPOCHS": 4, "BATCH_SIZE": 50, "SEED": 7, "VALIDATION": 100}
    for name, parameters in (("workspace", settings | training), ("playground", settings | {"FOLLOWED": 402})):
        papermill.execute_notebook(ROOT / f"{name}.ipynb", tmp_path / f"{name}.ipynb", parameters, **PAPERMILL)
    _, metadata = load_weights(tmp_path / "weights" / "small.pth")
    assert metadata["training"]["epochs"] == 4 and metadata["training"]["seed"] == 7
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(FIGURES)
    assert not (tmp_path / "unused").exists()
    shown = (tmp_path / "workspace.ipynb").read_text("utf-8")
    assert ", ".join(names) in shown and all(f"  {name} " in shown for name in names)
    assert "1,300 images to train on, 100 to validate on" in shown
    assert "test image 5 is read as" in (tmp_path / "playground.ipynb").read_text("utf-8")


def test_a_playground_without_weights_says_what_to_do(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"nothing\.pth is missing: run workspace\.ipynb"):
        papermill.execute_notebook(ROOT / "playground.ipynb", tmp_path / "playground.ipynb",
                                   {"MODEL_PATH": str(tmp_path / "nothing.pth")}, **PAPERMILL)


# what `make` runs

@pytest.fixture
def small(tmp_path) -> Path:
    """A notebook of two cells, the second of which waits, saved under a kernel that is not here."""
    path = tmp_path / "small.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('first')", "import time; time.sleep(WAIT)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "elsewhere", "display_name": "Elsewhere", "language": "python"}}), path)
    return path


def run_notebooks(path: Path, wait: str, *options: str | Path) -> subprocess.Popen:
    path.write_text(path.read_text("utf-8").replace("WAIT", wait), "utf-8")
    return subprocess.Popen([sys.executable, ROOT / "tests" / "run_notebooks.py", *options, path], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_run_notebooks_stores_the_outputs_of_a_clean_run(small):
    process = run_notebooks(small, "0")
    assert process.wait(60) == 0, process.stdout.read()
    notebook = nbformat.read(small, as_version=4)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[0].outputs[0].text == "first\n"
    assert notebook.metadata.kernelspec.name == "python3"
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_run_notebooks_with_an_output_folder_changes_nothing_else(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "new"
    process = run_notebooks(small, "print(os.environ['MNIST_OUTPUT'])".join(["0); import os; ", ""])[:-1],
                            "--output", folder)
    before = small.read_bytes()
    assert process.wait(60) == 0, process.stdout.read()
    assert small.read_bytes() == before and [path.name for path in small.parent.iterdir()] == [small.name]
    assert nbformat.read(folder / small.name, as_version=4).cells[1].outputs[0].text == f"{folder}\n"


def test_run_notebooks_leaves_a_failing_notebook_as_it_was(small):
    process = run_notebooks(small, "nonsense")
    before = small.read_bytes()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "left as it was, because a cell failed" in output
    assert "name 'nonsense' is not defined" in output
    assert small.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_the_notebook_as_it_was(small):
    process = run_notebooks(small, "60")
    before = small.read_bytes()
    seen = ""
    while "first" not in seen:
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "left as it was: interrupted" in output
    assert "Traceback" not in output and "pending" not in output
    assert small.read_bytes() == before


CTRL_C_AS_A_CELL_ENDS = """
import asyncio, os, pathlib, signal, sys
import run_notebooks
ended = run_notebooks.Client._async_poll_output_msg

async def press_ctrl_c(client, *message):
    await ended(client, *message)
    await asyncio.sleep(0.3)  # until the cell's other messages are there
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)

run_notebooks.Client._async_poll_output_msg = press_ctrl_c
run_notebooks.run_all([pathlib.Path(sys.argv[1])], None)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_is_not_lost_as_a_cell_ends(small):
    small.write_text(small.read_text("utf-8").replace("WAIT", "0"), "utf-8")
    before = small.read_bytes()
    process = subprocess.run([sys.executable, "-c", CTRL_C_AS_A_CELL_ENDS, small], cwd=ROOT / "tests", text=True,
                             capture_output=True, timeout=60)
    assert process.returncode == 1 and "left as it was: interrupted" in process.stderr
    assert small.read_bytes() == before
