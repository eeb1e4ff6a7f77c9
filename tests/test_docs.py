"""What README, docs/ and the other pages show: links lead somewhere, commands are accepted, examples run."""

import argparse
import glob
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import nbformat
import pytest
from distributed.cli import dask_scheduler, dask_worker
from torch.distributed.run import get_args_parser

import app.__main__
import benchmark_browser
import mnist.study
import run_model
from mnist.files import EXPORT_ENDINGS
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "dataset/README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
INSTANT = ("--mode export", "figures/samples")  # what run_model.py does here; the rest is only parsed,
SLOW = {"html", "onnx-detector"}  # and so are these formats, which tests/test_export.py exports


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.+?)```", (ROOT / page).read_text("utf-8"), re.S)


def commands(page: str) -> list[str]:
    """The commands of a page's sh blocks, without comments, each on one line."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Iterator[Path]:
    """A folder with what commands and examples read. They write there too: the examples find the commands' exports."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("MNIST-MODEL.pth", "dataset", "figures", "study"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(folder)
        changed.setattr(run_model, "OUTPUT", folder)
        yield folder


def accepted(parser: argparse.ArgumentParser, words: list[str]) -> None:
    if "--help" not in words:
        parser.parse_args(words)


def check_run_model(words: list[str]) -> None:
    """Run it where that takes an instant; elsewhere its options must be known."""
    if any(sign in " ".join(words) for sign in INSTANT) and not SLOW & set(words):
        files = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert run_model.main(files) == 0
    else:
        accepted(run_model.parser(), words)


def check_torchrun(words: list[str]) -> None:
    options = get_args_parser().parse_args(words)
    assert options.training_script == "run_model.py"
    accepted(run_model.parser(), options.training_script_args)


def check_papermill(words: list[str]) -> None:
    notebook = nbformat.read(ROOT / words[0], as_version=4)
    settings = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for number, word in enumerate(words):
        if word == "-p":
            assert re.search(rf"^{words[number + 1]} = ", settings, re.M)


def check_make(words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def check_dask(command: click.Command) -> Callable[[list[str]], None]:
    return lambda words: command.make_context("dask", words).close()


CHECKS: dict[str, Callable[[list[str]], None]] = {
    ".venv/bin/python run_model.py": check_run_model,
    ".venv/bin/python -m app": lambda words: accepted(app.__main__.parser(), words),
    ".venv/bin/python tests/benchmark_browser.py": lambda words: accepted(benchmark_browser.parser(), words),
    ".venv/bin/python -m mnist.study": lambda words: accepted(mnist.study.parser(), words),
    ".venv/bin/dask scheduler": check_dask(dask_scheduler.main),
    ".venv/bin/dask worker": check_dask(dask_worker.main),
    ".venv/bin/torchrun": check_torchrun,
    ".venv/bin/papermill": check_papermill,
    ".venv/bin/tensorboard": lambda words: None,
    "make": check_make,
    "mkdir": lambda words: None,
    "npm": lambda words: None,
}


@pytest.mark.parametrize("page, command", ALL, ids=[f"{page}: {command}" for page, command in ALL])
def test_a_command_that_is_shown_works(page, command, copy):
    bare = re.sub(r"^(\w+=\S+ )*", "", command)  # without the variables before it
    known = [start for start in CHECKS if bare == start or bare.startswith(f"{start} ")]
    assert known, "no check for this command"
    if bare.startswith(".venv/bin/") and not bare.startswith(".venv/bin/python"):
        program = known[0].split()[0].removeprefix(".venv/bin/")
        assert shutil.which(program, path=sysconfig.get_path("scripts")), "not installed"
    CHECKS[known[0]](shlex.split(bare)[len(known[0].split()):])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_examples_of_a_page_run(page, copy, capsys):
    for format, ending in EXPORT_ENDINGS.items():
        name = f"MNIST-MODEL{ending}"
        if any(f'"{name}"' in block for block in blocks(page, "python")) and not (copy / name).exists():
            assert run_model.main(["--mode", "export", "--format", format]) == 0
    images, labels = load_split("test", ROOT / "dataset")
    names = {"train_images": images[:9], "train_labels": labels[:9], "test_images": images, "test_labels": labels}
    for block in blocks(page, "python"):
        capsys.readouterr()
        exec(block, names)
        shown = re.findall(r"print\(.+\)  # (.+)\n", block)  # a comment after print is what it prints
        assert not shown or capsys.readouterr().out.splitlines() == shown
    if page == "dataset/README.md":
        assert [len(load_split(split, "my")[0]) for split in ("train", "test")] == [9, 10_000]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder, text = (ROOT / page).parent, (ROOT / page).read_text("utf-8")
    for link in re.findall(r'\]\(([^)#\s]*)(?:#\S*)?\)|src="([^"]+)"', text):
        path = "".join(link)
        assert path.startswith("https://") or (folder / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_headings_that_links_name_exist(page):
    for path, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", (ROOT / page).read_text("utf-8")):
        target = (ROOT / page).parent / path if path else ROOT / page
        titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
