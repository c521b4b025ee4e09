"""The docs page shows what the code computes: tables are compared as text, pictures are drawn again."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from heliostat.theory import draw_all, plots

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "explanation" / "theory.md"
PICTURES = ROOT / "docs" / "images" / "theory"


@pytest.fixture(scope="module")
def printed():
    """The command's output, from one fresh interpreter that must not load plotting, scipy or the objectives."""
    script = (
        "import runpy, sys; runpy.run_module('heliostat.theory', run_name='__main__');"
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'scipy') or 'objectives' in m];"
        "sys.exit(f'imported {loaded[:3]}' if loaded else 0)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_shows_the_tables_that_the_command_prints(printed):
    page = PAGE.read_text(encoding="utf-8")
    tables = [block for block in printed.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert table in page, "run `python -m heliostat.theory` and paste its tables"


def test_the_example_on_the_page_runs_and_gives_the_numbers_beside_it():
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    step = names["step"]
    assert [round(float(x), 3) for x in step.probs] == [0.741, 0.259]
    assert f"({step.probs[0]:.3f}, {step.probs[1]:.3f}), multiplier {step.lam:.2f}" in code
    assert float(step.certificate.worst) < 1e-15


def test_every_picture_is_shown_and_kept():
    text = PAGE.read_text(encoding="utf-8")
    shown = {*plots.FIGURES, "measured"}
    assert {path.stem for path in PICTURES.glob("*.svg")} == shown
    for name in shown:
        assert f"(../images/theory/{name}.svg)" in text


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("matplotlib")
    return draw_all(tmp_path_factory.mktemp("pictures") / "new" / "folder")


@pytest.mark.slow
def test_all_pictures_are_drawn(pictures):
    assert [path.stem for path in pictures] == list(plots.FIGURES)
    for path in pictures:
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        curves = [e.get("d", "") for e in root.iter("{http://www.w3.org/2000/svg}path")]
        assert sum(len(d) > 400 for d in curves) >= 2, f"{path.name} has hardly any curve"
        text = path.read_text(encoding="utf-8")
        assert "nan" not in text.lower()
        # Readable on light and dark pages: no white ground, no black ink.
        assert "#ffffff" not in text
        assert "#000000" not in text


@pytest.mark.slow
def test_drawing_again_gives_the_same_bytes(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", {"loophole": plots.FIGURES["loophole"]})
    again = draw_all(tmp_path)[0]
    assert again.read_bytes() == next(path for path in pictures if path.stem == "loophole").read_bytes()


def test_without_matplotlib_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'heliostat\[plots\]'"):
        draw_all(tmp_path)
