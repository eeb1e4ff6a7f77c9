"""pytest plugin: run the notebooks before the other tests, and keep everything temporary in one folder.

The variable MNIST_OUTPUT tells the notebooks' kernels where to write, so the committed weights and
figures do not change. workspace.ipynb runs first, and playground.ipynb loads the weights that it has
just trained. Where workspace.ipynb is not part of the test run, the folder holds a copy of the
committed weights. After a run without failures the temporary folder is deleted, with all that the
tests and the programs that they killed have left there. After a failure it stays for a day.

With pytest-xdist (`-n 2`), each file's tests are run by one of the workers, and the notebooks with
the tests of their outputs by the same one. Each worker has a folder of its own and one thread.
"""

import atexit
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

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
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"  # of torch, here and in the programs that tests start: workers share the cores
    folder = Path(tempfile.mkdtemp(prefix="mnist-tests-"))
    folder.chmod(0o755)  # PostgreSQL runs under another account, and its folder is in there
    (folder / "output").mkdir()
    changes = {OUTPUT: str(folder / "output"), "TMPDIR": str(folder)}
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


class OneWorkerForTheNotebooks(LoadScopeScheduling):
    """Each file's tests go to one worker; those of notebooks and of what they write count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        name = nodeid.split("::")[0]
        return "notebooks" if name.endswith((*NOTEBOOKS, "test_notebooks.py")) else name


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return OneWorkerForTheNotebooks(config, log)


@pytest.fixture(scope="session")
def output(request) -> Path:
    """The folder to which the notebooks of this test run write their weights and figures, or with the committed weights.

    The latter is so in a worker that does not run the notebooks.
    """
    folder = Path(os.environ[OUTPUT])
    if not (folder / "MNIST-MODEL.pth").exists():
        shutil.copy(request.config.rootpath / "MNIST-MODEL.pth", folder)
    return folder
