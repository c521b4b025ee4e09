"""Progress in a notebook: one card, updated in place, with everything that lines would have said."""

import html
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from heliostat.train.console.notebook import NotebookDisplay, open_display


class Shown:
    """Stands in for a notebook: remembers the cards, and the contents of each."""

    def __init__(self):
        self.cards = []

    def __call__(self, bundle, **options):
        card = SimpleNamespace(contents=[bundle], update=lambda fresh, raw: card.contents.append(fresh))
        self.cards.append((card, options))
        return card


@pytest.fixture
def notebook(monkeypatch):
    """A process that IPython has started for a notebook, as far as the display asks."""
    shown = Shown()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    display.display = shown
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_run_is_one_card_in_a_notebook(notebook, capsys):
    with open_display() as display:
        display.note("run folder: <b>\x1b")
        display.note("guard: nothing is solved")
        display.begin_phase("warm start", 2)
        display.step(1, {"loss/sft": 2.0})
        display.step(2, {"loss/sft": 1.0})
        display.end_phase()
        display.begin_phase("train", 3)
        for step, reward in ((1, 0.25), (2, float("nan")), (3, 0.75)):
            display.step(step, {"reward/mean": reward, "eval/pass@1": 0.5})
        display.end_phase()
    ((card, options),) = notebook.cards
    assert options == {"raw": True, "display_id": True}
    last = card.contents[-1]
    assert (
        last["text/plain"]
        == "run folder: <b>␛\nguard: nothing is solved\ntrain 3/3  ETA 0:00  reward 0.750  held-out 50.0%"
    )
    assert "run folder: &lt;b&gt;␛" in last["text/html"]
    assert "<div>guard: nothing is solved</div>" in last["text/html"].partition("<details")[0]
    assert "run folder" not in last["text/html"].partition("<details")[0]
    assert 'value="1.0000"' in last["text/html"]
    assert "reward/mean from 0.250 to 0.750" in last["text/html"]
    points = re.search('points="([^"]*)"', last["text/html"])[1]
    assert points == "0.0,60.0 400.0,0.0"
    assert capsys.readouterr().out == ""


def test_steps_between_two_updates_are_drawn_with_the_next(notebook):
    display = NotebookDisplay(notebook, every_s=3600.0)
    display.begin_phase("train", 1000)
    for step in range(1, 1001):
        display.step(step, {"reward/mean": step / 1000})
    ((card, _),) = notebook.cards
    assert len(card.contents) == 3  # the phase, its first step, and its last
    text = html.unescape(card.contents[-1]["text/html"])
    assert "from 0.001 to 1.000" in text
    assert text.count(",") < 500  # no more points than can be seen


def test_elsewhere_there_are_lines(monkeypatch, capsys):
    shell = ModuleType("IPython")
    shell.get_ipython = lambda: SimpleNamespace()  # IPython in a terminal has no kernel
    monkeypatch.setitem(sys.modules, "IPython", shell)
    open_display().note("a line")
    monkeypatch.delitem(sys.modules, "IPython")
    open_display().note("another")
    assert capsys.readouterr().out == "a line\nanother\n"


def test_ranks_that_do_not_print_show_no_card(notebook, capsys):
    open_display(quiet=True).note("a line")
    assert notebook.cards == []
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_nothing_imports_ipython():
    code = "import sys; from heliostat.train.console.notebook import open_display; open_display().note('x'); \
assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
