"""Restart & Run All from the command line, in place: python tests/run_notebooks.py NOTEBOOK...

A bar counts each notebook's cells and shows the last line printed. A notebook is replaced only
once all its cells have run; after an error, or Ctrl-C, it is as it was.
"""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

WIDGET = "application/vnd.jupyter.widget-view+json"


class Client(NotebookClient):
    """nbclient that shows on a bar how far it is, and that Ctrl-C ends."""

    def __init__(self, notebook: nbformat.NotebookNode, bar: tqdm, **options) -> None:
        super().__init__(notebook, on_notebook_start=self.take_ctrl_c, on_cell_start=self.advance, **options)
        self.bar = bar

    def take_ctrl_c(self, notebook: nbformat.NotebookNode) -> None:
        """nbclient's own handler stops the kernel and then trips over its absence: end its task instead."""
        with contextlib.suppress(NotImplementedError):  # Windows knows no handler, and raises KeyboardInterrupt
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)

    def advance(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.bar.update(cell_index - self.bar.n)

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int):
        if msg["msg_type"] == "stream" and (text := msg["content"]["text"].strip()):
            self.bar.set_postfix_str(text.splitlines()[-1][:90])
        return super().process_message(msg, cell, cell_index)


def run(path: Path) -> None:
    """Execute a notebook from a fresh kernel in its own folder, and store its outputs in it."""
    notebook = nbformat.read(path, as_version=4)
    with tqdm(total=len(notebook.cells), desc=path.name,
              bar_format="{desc}: cell {n_fmt} of {total_fmt}, {elapsed}{postfix}") as bar:
        Client(notebook, bar, kernel_name="python3", timeout=None, record_timing=False, coalesce_streams=True,
               resources={"metadata": {"path": path.resolve().parent}},
               # the kernel's own log would speak of unencrypted loopback, and of its end after Ctrl-C
               shutdown_kernel="immediate", extra_arguments=["--log-level=CRITICAL"]).execute()
        bar.set_postfix_str("")
        bar.update(len(notebook.cells) - bar.n)
    tidy(notebook)
    finished = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, finished)
    finished.replace(path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop what says nothing to a reader: dead progress bars, pages no longer served, and details of this Python."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in (data := output.get("data", {}))
                            and "<iframe" not in data.get("text/html", "")]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            run(Path(name))
        except CellExecutionError as error:
            sys.exit(f"{name} was left as it was, because a cell failed:\n{error}")
        except (KeyboardInterrupt, asyncio.CancelledError, DeadKernelError):
            # a cancelled cell ends as one whose kernel has died
            sys.exit(f"\n{name} was left as it was: interrupted, or its kernel died")
