"""pytest plugin: run the notebooks before the other tests, and keep everything temporary in one folder.

The variable MNIST_OUTPUT tells the notebooks' kernels where to write, so the committed weights and
figures do not change. workspace.ipynb runs first, and playground.ipynb loads the weights that it has
just trained. Where workspace.ipynb is not part of the test run, the folder holds a copy of the
committed weights. Where several processes share the tests (pytest-xdist), each computes with one
thread: threads that outnumber the cores wait for each other.

After a run without failures the temporary folder is deleted, with all that the tests and the
programs that they killed have left there. After a failure it stays for a day.
"""

import atexit
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

NOTEBOOKS = ["workspace.ipynb", "playground.ipynb", "evidence.ipynb"]
OUTPUT = "MNIST_OUTPUT"
DAY = 24 * 3600  # seconds
FINISHED: list[Path] = []  # folders to delete at the end
BEFORE = pytest.StashKey[dict[str, str | None]]()
FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in jobs that a shell starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # otherwise processes started here ignore Ctrl-C
    for old in Path(tempfile.gettempdir()).glob("mnist-tests-*"):  # of runs that failed
        if time.time() - old.stat().st_mtime > DAY:
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="mnist-tests-"))
    folder.chmod(0o755)  # PostgreSQL runs under another account, and its folder is in there
    (folder / "output").mkdir()
    changes = {OUTPUT: str(folder / "output"), "TMPDIR": str(folder)}
    if config.getoption("numprocesses", None):
        changes["OMP_NUM_THREADS"] = "1"
    config.stash[BEFORE] = {name: os.environ.get(name) for name in changes}
    config.stash[FOLDER] = folder
    os.environ.update(changes)
    tempfile.tempdir = str(folder)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        FINISHED.append(session.config.stash[FOLDER])


@atexit.register  # so early that it runs last: multiprocessing deletes a folder of its own in there before
def delete_finished() -> None:
    for folder in FINISHED:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    tempfile.tempdir = None
    for name, value in config.stash[BEFORE].items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (folder := config.stash[FOLDER]) not in FINISHED:
        terminalreporter.write_line(f"temporary files of this run: {folder}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: NOTEBOOKS.index(item.path.name) if item.path.name in NOTEBOOKS else len(NOTEBOOKS))


def pytest_collection_finish(session: pytest.Session) -> None:
    weights = session.config.rootpath / "MNIST-MODEL.pth"
    if weights.exists() and not any(item.path.name == NOTEBOOKS[0] for item in session.items):
        shutil.copy(weights, os.environ[OUTPUT])


@pytest.fixture(scope="session")
def output() -> Path:
    """The folder to which the notebooks of this test run write their weights and figures."""
    return Path(os.environ[OUTPUT])
