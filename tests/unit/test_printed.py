"""Whatever a model or a data file holds, a terminal gets no commands from it, and a reader sees all of it."""

import io
import sys
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from heliostat.cli.entry import one_line
from heliostat.cli.tables import print_completions, print_outcome
from heliostat.printed import say, visible, visible_line
from heliostat.terminal import SafeConsole
from heliostat.train.console.progress import Display

HIDDEN = [
    chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp")
]
ATTACKS = [
    "\x1b[2J",
    "\x1b]0;TITLE\x07",
    "\x9b31m",
    "safe\rgone",
    "a\x08b",
    "\u202egpj",
    "a\u200bb",
    "\u2066x",
    "\ud800",
]


def obeys(text: str) -> set[str]:
    """Characters of ``text`` that are no signs; newline and tab aside."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}


def test_every_hidden_character_becomes_visible_and_distinct() -> None:
    hidden = [character for character in HIDDEN if character not in "\n\t"]
    shown = [visible(character) for character in hidden]
    assert not any(map(obeys, shown))
    assert len(set(shown)) == len(shown)
    assert not obeys(visible("".join(chr(code) for code in range(0xD800, 0xE000))))


def test_signs_newlines_and_tabs_stay_and_twice_is_once() -> None:
    text = "ünïcode 漢字 🙂\tx\n  y ␛"
    assert visible(text) == text
    everything = visible("".join(HIDDEN))
    assert visible(everything) == everything
    assert visible_line(" a\n\x1b b ") == "a ␛ b"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("terminal", [True, False])
def test_no_attack_passes_a_console(attack: str, terminal: bool) -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=terminal, color_system=None, width=200)
    table = Table(attack, title=attack)
    table.add_row(Text(attack))
    console.print(table)
    console.print(Text(attack))
    console.print(f"{attack} plain", markup=False)
    console.print(attack)
    Display(console).note(attack)
    written = file.getvalue()
    assert not obeys(written)
    assert visible(attack.partition("\x07")[0])[-3:] in written


def test_styles_are_the_consoles_own() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard", width=80)
    console.print(Text("\x1b[2J", style="bold"))
    assert file.getvalue() == "\x1b[1m␛[2J\x1b[0m\n"


@pytest.mark.parametrize("attack", ATTACKS)
def test_refusals_and_said_lines_are_visible(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not obeys(one_line(ValueError(f"row 3: {attack}")))
    say(attack)
    assert not obeys(capsys.readouterr().out)


@pytest.mark.parametrize("attack", ATTACKS)
def test_answers_and_samples_are_visible(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path
    from types import SimpleNamespace

    problem = SimpleNamespace(question=attack)
    completion = SimpleNamespace(token_ids=(1,), stop_reason="eos", text=attack)
    group = SimpleNamespace(prompt=SimpleNamespace(problem=problem), completions=[completion], verdicts=())
    print_completions([group])  # type: ignore[list-item]
    row = {"prompt": attack, "completion": attack, "answer": attack, "success": True}
    result = SimpleNamespace(status="finished", before=None, after=None, folder=Path("run"), findings=(attack,))
    print_outcome(result, [row], Path("report.html"))  # type: ignore[arg-type]
    written = capsys.readouterr().out
    assert not obeys(written)
    assert written.count(visible(attack)) >= 5
    assert f"finding                 {visible_line(attack)}\n" in written
