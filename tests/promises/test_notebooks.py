"""The promise: the notebooks run as they are, and what is stored in them is of no particular machine."""

import json
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
FOLDER = re.compile(r"(?<![\w/.:])/(?:home|root|Users|tmp|var|work|usr|opt)/")

missing = [name for name in ("nbclient", "ipykernel", "matplotlib") if find_spec(name) is None]


def code_cells(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def kinds(cell):
    """Return the kinds of a cell's outputs, without words and numbers."""
    return [(one["output_type"], one.get("name"), sorted(one.get("data", ()))) for one in cell["outputs"]]


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["one_step", "optimizers", "own_task"]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (extra: dev, plots)")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_puts_out_what_is_stored_in_it(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from run_notebooks import execute

    stored = json.loads(path.read_text())["cells"]
    fresh = execute(path).cells  # an exception in a cell is an exception here
    assert [cell["source"] for cell in fresh] == ["".join(cell["source"]) for cell in stored]
    assert [kinds(cell) for cell in code_cells(fresh)] == [kinds(cell) for cell in code_cells(stored)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_executed_and_without_its_machine(path):
    text = path.read_text()
    notebook = json.loads(text)
    cells = code_cells(notebook["cells"])
    assert [cell["execution_count"] for cell in cells] == [number + 1 for number in range(len(cells))]
    assert {one["output_type"] for cell in cells for one in cell["outputs"]} <= {
        *("stream", "display_data", "execute_result")
    }
    assert [one for cell in cells for one in cell["outputs"] if one.get("name") == "stderr"] == []
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert FOLDER.findall(text) == []
    assert platform.node() not in text
    assert len(text) < 150_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    prose = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] != "code"]
    links = LINK.findall("\n".join(prose))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []
