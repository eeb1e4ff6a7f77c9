"""pytest plugin: notebooks run first, in their order, and write to a temporary folder.

The folder is named to their kernels by MNIST_OUTPUT, so the committed weights and figures stay as
they are. playground.ipynb finds there what workspace.ipynb has just trained; where that one is
not part of the session, it finds the committed weights.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

NOTEBOOKS = ["workspace.ipynb", "playground.ipynb"]
OUTPUT = "MNIST_OUTPUT"
BEFORE = pytest.StashKey[str | None]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else no process started here hears Ctrl-C
    config.stash[BEFORE] = os.environ.get(OUTPUT)
    os.environ[OUTPUT] = tempfile.mkdtemp(prefix="mnist-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ.pop(OUTPUT), ignore_errors=True)
    if config.stash[BEFORE] is not None:
        os.environ[OUTPUT] = config.stash[BEFORE]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: NOTEBOOKS.index(item.path.name) if item.path.name in NOTEBOOKS else len(NOTEBOOKS))


def pytest_collection_finish(session: pytest.Session) -> None:
    weights = session.config.rootpath / "MNIST-MODEL.pth"
    if weights.exists() and not any(item.path.name == NOTEBOOKS[0] for item in session.items):
        shutil.copy(weights, os.environ[OUTPUT])


@pytest.fixture(scope="session")
def output() -> Path:
    """Where this session's notebooks have written their weights and figures."""
    return Path(os.environ[OUTPUT])
