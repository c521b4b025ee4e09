"""Progress of a run in a notebook: one card that is updated in place, instead of a line for each step.

    steps and time left  |  a bar  |  the reward so far as a curve  |  the guard's findings  |  other notes, folded

Left out: the lines of a terminal (``progress``), and the page of a run (``report``).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import import_module
from typing import Protocol

from rich.console import Console

from heliostat.printed import visible
from heliostat.train.console.progress import Display, clock, shown_metrics

Bundle = dict[str, str]
"""The card as HTML, and as one line for programs that show no HTML, by media type."""

EVERY_S = 0.5
CURVES = ("reward/mean", "loss/sft")
"""Metrics that are drawn; the first of them that a phase logs."""
WARNING, MAX_WARNINGS = "guard: ", 5
"""The beginning of a note that stays visible, and the number of such notes that are shown."""
WIDTH, HEIGHT, MAX_POINTS = 400, 60, 400
STYLE = "font-family:system-ui,sans-serif;max-width:44em;line-height:1.5;color:var(--jp-ui-font-color1,inherit)"


class Card(Protocol):
    """A card in the notebook, as ``IPython.display`` returns it."""

    def update(self, bundle: Bundle, *, raw: bool) -> None:
        """Replace the card's content."""


Show = Callable[[Bundle], Card]


def open_display(quiet: bool = False) -> Display:
    """Return the display of this process: a card in a notebook, lines elsewhere, nothing if ``quiet``."""
    show = None if quiet else notebook_output()
    if show is not None:
        return NotebookDisplay(show)
    return Display(Console(highlight=False, quiet=quiet))


def notebook_output() -> Show | None:
    """Return the function that shows a card in the notebook that runs this process; ``None`` outside of one.

    IPython is not imported: a process that a notebook runs has imported it already.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    display = import_module("IPython.display").display
    return lambda bundle: display(bundle, raw=True, display_id=True)


class NotebookDisplay(Display):
    """Progress display of the phases of one run as a card.

    Args:
        show: shows a card for the first time.
        every_s: seconds between two updates for steps, at least; the last step always shows.
    """

    def __init__(self, show: Show, every_s: float = EVERY_S) -> None:
        super().__init__(line_every_s=every_s)
        self.show = show
        self.notes: list[str] = []
        self._card: Card | None = None
        self._line = ""
        self._part = 0.0
        self._curves: dict[str, list[float]] = {}

    def note(self, text: str) -> None:
        """Add a line to the notes."""
        self.notes.append(visible(text))
        self._update()

    def begin_phase(self, name: str, total: int, done: int = 0) -> None:
        """Start counting a phase's steps; ``done`` of them ran before a restart."""
        self._phase, self._total, self._done = name, total, done
        self._began, self._printed = time.monotonic(), 0.0
        self._curves = {}
        self._line, self._part = f"{name} {done}/{total}", done / max(1, total)
        self._update()

    def step(self, index: int, values: Mapping[str, float]) -> None:
        """Report that ``index`` steps of the phase are done."""
        self._held_out |= {key: value for key, value in values.items() if key == "eval/pass@1"}
        for key in CURVES:
            if math.isfinite(values.get(key, math.nan)):
                self._curves.setdefault(key, []).append(values[key])
        left = (self._total - index) * (time.monotonic() - self._began) / max(1, index - self._done)
        metrics = "  ".join(shown_metrics({**self._held_out, **values}))
        self._line = f"{self._phase} {index}/{self._total}  ETA {clock(left)}  {metrics}"
        self._part = index / max(1, self._total)
        if index == self._total or time.monotonic() - self._printed >= self.line_every_s:
            self._printed = time.monotonic()
            self._update()

    def end_phase(self) -> None:
        """Show the phase's last state."""
        if self._card is not None:
            self._update()

    def _update(self) -> None:
        plain = "\n".join([*self.notes, self._line]).strip()
        bundle = {"text/html": self._html(), "text/plain": plain}
        if self._card is None:
            self._card = self.show(bundle)
        else:
            self._card.update(bundle, raw=True)

    def _html(self) -> str:
        parts = []
        if self._line:
            bar = f'<progress max="1" value="{self._part:.4f}" style="width:100%"></progress>'
            parts = [f'<div style="font-variant-numeric:tabular-nums">{escape(self._line)}</div>', bar, self._curve()]
        parts += [f"<div>{escape(note)}</div>" for note in self.notes if note.startswith(WARNING)][-MAX_WARNINGS:]
        if self.notes:
            lines = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
            last = f"<summary>{escape(self.notes[-1])}</summary>"
            parts.append(f'<details style="opacity:.75;font-size:.85em;overflow-wrap:anywhere">{last}{lines}</details>')
        return f'<div style="{STYLE}">{"".join(parts)}</div>'

    def _curve(self) -> str:
        key = next((key for key in CURVES if len(self._curves.get(key, ())) > 1), None)
        return "" if key is None else _drawn(key, self._curves[key])


def _drawn(name: str, values: Sequence[float]) -> str:
    """Draw values as a line, with their smallest and largest at its side."""
    thin = values[:: -(-len(values) // MAX_POINTS)]
    low, high = min(thin), max(thin)
    span = high - low or 1.0
    points = " ".join(
        f"{WIDTH * place / max(1, len(thin) - 1):.1f},{HEIGHT * (1 - (value - low) / span):.1f}"
        for place, value in enumerate(thin)
    )
    stroke = 'fill="none" stroke="#0a84d6" stroke-width="2" vector-effect="non-scaling-stroke"'
    label = f"{name} from {values[0]:.3f} to {values[-1]:.3f}; smallest {low:.3f}, largest {high:.3f}"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 -3 {WIDTH} {HEIGHT + 6}" preserveAspectRatio="none" '
        f'style="display:block;width:100%;height:{HEIGHT}px"><polyline points="{points}" {stroke}/></svg>'
        f'<small style="opacity:.75">{label}</small>'
    )
