"""Execute the notebooks of ``docs/notebooks`` and write their outputs into them (extra: dev).

    python docs/run_notebooks.py                  all of them
    python docs/run_notebooks.py own_task.ipynb   one

Each runs in an empty folder of its own. Metadata about the machine and about times is removed.

Left out: pages of the site; the notebooks are linked as files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "notebooks"
TIMEOUT_S = 240
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def execute(path: Path) -> Any:
    """Execute a notebook in an empty folder, and return it with its outputs and without traces of the machine.

    Raises:
        CellExecutionError: a cell raised; the message has its traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder, _plain_environment():
        place = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=place, record_timing=False
        )
        client.execute()
    return _cleaned(notebook)


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Keep the user's IPython settings, colours, and tqdm's note about its widgets, out of the outputs."""
    known = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder, "NO_COLOR": "1", "COLUMNS": "100"}
        os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= known


def _cleaned(notebook: Any) -> Any:
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = {}
    return notebook


def main(names: list[str]) -> None:
    import nbformat

    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(path.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
