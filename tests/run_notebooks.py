"""Restart & Run All from the command line, in place: python tests/run_notebooks.py NOTEBOOK...

A bar counts each notebook's cells and shows the last line printed. A notebook is replaced only
once all its cells have run; after an error, or Ctrl-C, it is as it was.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm


class Client(NotebookClient):
    """nbclient that shows on a bar how far it is."""

    def __init__(self, notebook: nbformat.NotebookNode, bar: tqdm, **options) -> None:
        super().__init__(notebook, on_cell_start=self.advance, **options)
        self.bar = bar

    def advance(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.bar.update(cell_index - self.bar.n)

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int):
        if msg["msg_type"] == "stream" and (text := msg["content"]["text"].strip()):
            self.bar.set_postfix_str(text.splitlines()[-1][:60])
        return super().process_message(msg, cell, cell_index)


def run(path: Path) -> None:
    """Execute a notebook from a fresh kernel in its own folder, and store its outputs in it."""
    notebook = nbformat.read(path, as_version=4)
    with tqdm(total=len(notebook.cells), unit="cell", desc=path.name) as bar:
        Client(notebook, bar, timeout=None, record_timing=False, coalesce_streams=True,
               resources={"metadata": {"path": path.resolve().parent}},
               extra_arguments=["--log-level=ERROR"],  # no warning that loopback is not encrypted
               ).execute()
        bar.set_postfix_str("")
        bar.update(len(notebook.cells) - bar.n)
    notebook.metadata.language_info = {"name": "python"}  # the rest differs with the Python at hand
    finished = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, finished)
    finished.replace(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            run(Path(name))
        except CellExecutionError as error:
            sys.exit(f"{name} was left as it was, because a cell failed:\n{error}")
        except KeyboardInterrupt:
            sys.exit(f"{name} was left as it was: interrupted")
