"""Run all cells of notebooks, each in a fresh kernel.

    python tests/run_notebooks.py NOTEBOOK...                  store the new outputs in the notebooks
    python tests/run_notebooks.py --output FOLDER NOTEBOOK...  change nothing outside of FOLDER

With --output, the executed notebooks, weights and figures go to FOLDER. On a terminal, a bar counts
each notebook's cells and shows the last line printed. A notebook is replaced only once all its cells have run. After
an error or Ctrl-C it stays as it was.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

WIDGET = "application/vnd.jupyter.widget-view+json"


class Client(NotebookClient):
    """A notebook client that shows its progress on a bar, and that Ctrl-C stops."""

    def __init__(self, notebook: nbformat.NotebookNode, bar: tqdm, **options) -> None:
        super().__init__(notebook, on_notebook_start=self.take_ctrl_c, on_cell_start=self.advance, **options)
        self.bar = bar

    def take_ctrl_c(self, notebook: nbformat.NotebookNode) -> None:
        """Make Ctrl-C cancel the running task.

        nbclient's own handler stops the kernel first, and then fails because the kernel is gone.
        """
        with contextlib.suppress(NotImplementedError):  # Windows has no handlers, and raises KeyboardInterrupt
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)

    def advance(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        if asyncio.current_task().cancelling():  # Ctrl-C came as a cell ended, and Python 3.11's wait_for lost it
            raise asyncio.CancelledError
        self.bar.update(cell_index - self.bar.n)

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int):
        if msg["msg_type"] == "stream" and (text := msg["content"]["text"].strip()):
            self.bar.set_postfix_str(text.splitlines()[-1][:90])
            if self.bar.disable:  # stderr is no terminal: a log file gets the notebook's lines instead of the bar
                print(text, flush=True)
        return super().process_message(msg, cell, cell_index)


def run(path: Path, target: Path) -> None:
    """Run a notebook in its own folder, and write it with its outputs to `target`."""
    notebook = nbformat.read(path, as_version=4)
    with tqdm(total=len(notebook.cells), desc=path.name, disable=None,
              bar_format="{desc}: cell {n_fmt} of {total_fmt}, {elapsed}{postfix}") as bar:
        Client(notebook, bar, kernel_name="python3", timeout=None, record_timing=False, coalesce_streams=True,
               resources={"metadata": {"path": path.resolve().parent}},
               # otherwise the kernel logs that the loopback is not encrypted, and that Ctrl-C ended it
               shutdown_kernel="immediate", extra_arguments=["--log-level=CRITICAL"]).execute()
        bar.set_postfix_str("")
        bar.update(len(notebook.cells) - bar.n)
    tidy(notebook)
    finished = target.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, finished)
    finished.replace(target)
    print(f"{path.name}: all {len(notebook.cells)} cells have run; with their outputs: {target}")


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove what no reader needs: dead progress bars, pages no longer served, and details of this Python."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in (data := output.get("data", {}))
                            and "<iframe" not in data.get("text/html", "")]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    options.add_argument("--output", type=Path, metavar="FOLDER", help="write here instead of into the notebooks")
    chosen = options.parse_args()
    if chosen.output:
        chosen.output.mkdir(parents=True, exist_ok=True)
        os.environ["MNIST_OUTPUT"] = str(chosen.output.resolve())
    with tempfile.TemporaryDirectory(prefix="mnist-notebooks-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # what a kernel leaves there when it is stopped at once goes with the folder
        run_all(chosen.notebooks, chosen.output)


def run_all(notebooks: list[Path], output: Path | None) -> None:
    """Run the notebooks one after the other; the first failure ends the program with a message."""
    for path in notebooks:
        try:
            run(path, output / path.name if output else path)
        except CellExecutionError as error:
            sys.exit(f"{path} was left as it was, because a cell failed:\n{error}")
        except (KeyboardInterrupt, asyncio.CancelledError, DeadKernelError):
            # a cancelled cell ends in the same errors as a dead kernel
            sys.exit(f"\n{path} was left as it was: interrupted, or its kernel died")


if __name__ == "__main__":
    main()
