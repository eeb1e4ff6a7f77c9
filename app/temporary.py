"""The folder for temporary files: a page that is killed cannot delete its own, so the next one does."""

import atexit
import contextlib
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "mnist-page-"


def own_folder() -> str:
    """A new temporary folder that is deleted at the end; those of pages that were killed are deleted now."""
    folder = tempfile.mkdtemp(prefix=PREFIX)
    lock = FileLock(Path(folder, "lock"))  # the system releases it, however this process ends
    lock.acquire()
    atexit.register(lambda: (lock.release(), shutil.rmtree(folder, ignore_errors=True)))
    for other in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(Timeout, OSError), FileLock(other, blocking=False):
            shutil.rmtree(other.parent, ignore_errors=True)
    return folder
