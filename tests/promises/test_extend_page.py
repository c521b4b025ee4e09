"""The promise: each part on the page "Extend Heliostat" is a file that keeps its promises as it is printed."""

import re
import sys
from pathlib import Path

import pytest

from heliostat.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "extend.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, flags=re.DOTALL))
CHECKED = re.findall(r"heliostat check ((\w+):\w+)", PAGE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's files, which imports search."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [name for name, module in CHECKED if module in FILES])
def test_a_part_passes_its_check_as_printed(folder, name, capsys):
    assert main(["check", name]) == 0, capsys.readouterr().out


def test_the_page_has_a_part_of_every_kind_and_an_objective_in_15_lines():
    assert {module for _, module in CHECKED} - {"my_module"} == set(FILES)
    assert len(FILES) == 7
    assert len([line for line in FILES["margin"].splitlines() if line.strip()]) <= 15
