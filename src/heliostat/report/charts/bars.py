"""Stacked horizontal bars of seconds or FLOPs by phase, one bar per run, all on one scale.

The numbers stand in a table under the bars, because a thin slice has no room for a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.phases import PHASES


def stacked_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]], title: str, write: Callable[[float], str], note: str
) -> Html:
    """Draw one bar per run, and a table with every value and its share.

    Args:
        rows: per run its label and amount by phase; a phase without an amount takes no space.
        write: turns an amount into text with its unit.
        note: a sentence on how to read it.

    **Limits** A run without any amount gives an empty bar, not a division by zero.
    """
    largest = max((sum(parts.values()) for _, parts in rows), default=0.0) or 1.0
    phases = [phase for phase in PHASES if any(parts.get(phase) for _, parts in rows)]
    bars = [_bar(label, parts, phases, largest, write) for label, parts in rows]
    cells = [
        {"key": phase, "name": PHASES[phase], "cells": [_cell(parts, phase, write) for _, parts in rows]}
        for phase in phases
    ]
    return fill("bars.html", title=title, bars=bars, phases=cells, note=note)


def _bar(
    label: str, parts: Mapping[str, float], phases: Sequence[str], largest: float, write: Callable[[float], str]
) -> dict[str, Any]:
    slices, start = [], 0.0
    for phase in phases:
        width = 100 * parts.get(phase, 0.0) / largest
        if width > 0:
            text = f"{PHASES[phase]}: {write(parts[phase])}"
            slices.append({"phase": phase, "start": f"{start:.3f}%", "width": f"{width:.3f}%", "text": text})
            start += width
    shares = ", ".join(f"{PHASES[phase]} {write(parts[phase])}" for phase in phases if parts.get(phase))
    total = write(sum(parts.values()))
    return {"label": label, "total": total, "slices": slices, "shares": shares or "nothing recorded"}


def _cell(parts: Mapping[str, float], phase: str, write: Callable[[float], str]) -> dict[str, str]:
    """Write an amount and its share of the bar."""
    if not (amount := parts.get(phase, 0.0)):
        return {"amount": "–", "share": ""}
    return {"amount": write(amount), "share": f"{100 * amount / sum(parts.values()):.0f}%"}
