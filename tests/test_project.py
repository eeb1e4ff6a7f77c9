"""What holds the project together: pins that agree, code and notebooks that ruff accepts."""

import glob
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import run_model
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
CARD = {"torch", "torchvision", "numpy", "matplotlib", "scikit-learn", "tqdm", "torchinfo", "torchviz", "jupyterlab",
        "nbval", "ipywidgets"}


def pins() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["workspace"]


def test_conda_and_pip_install_the_same_versions():
    environment = (ROOT / "environment.yml").read_text("utf-8")
    assert re.findall(r"^ +- (\S+==\S+)$", environment, re.M) == pins()


def test_every_package_is_pinned_and_the_pins_are_what_is_tested():
    named = dict(pin.split("==") for pin in pins())
    assert named.keys() >= CARD
    assert {name: version(name).split("+")[0] for name in named} == named


def test_the_example_in_the_data_s_readme_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.+?)```", (ROOT / "dataset" / "README.md").read_text("utf-8"), re.S)[1]
    images, labels = load_split("test", ROOT / "dataset")
    exec(code, {"train_images": images[:9], "train_labels": labels[:9], "test_images": images, "test_labels": labels})
    for split, count in (("train", 9), ("test", 10_000)):
        assert len(load_split(split, "my")[0]) == count


def test_the_readme_s_examples_work(tmp_path, monkeypatch, capsys):
    for name in ("MNIST-MODEL.pth", "dataset", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_model, "OUTPUT", tmp_path)
    commands = re.findall(r"run_model.py (--mode (?:predict|export) [^#\n]+)", (ROOT / "README.md").read_text("utf-8"))
    for command in commands:
        words = [path for word in command.split() for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert run_model.main([*words, "--model-path", "MNIST-MODEL.pth"]) == 0
    assert "figures/samples/seven.jpg\t7\t" in capsys.readouterr().out
    for block in re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text("utf-8"), re.S):
        exec(block, {})
    digits, number, onnx = capsys.readouterr().out.splitlines()
    assert digits.startswith("7 ") and number == "[0, 3, 1, 6, 5, 2, 9, 4, 8]" and onnx == "[7 2 1 0 4]"


def test_ruff_accepts_code_and_notebooks():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
