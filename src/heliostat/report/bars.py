"""Stacked horizontal bars: where seconds and operations went, one bar per run, all on one scale.

The numbers stand in a table under the bars, because a thin slice has no room for a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from heliostat.report.markup import Html, element
from heliostat.report.phases import PHASES


def stacked_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]], title: str, write: Callable[[float], str], note: str
) -> Html:
    """One bar per run, and a table with every value and its share.

    Args:
        rows: per run its label and amount by phase; a phase without an amount takes no space.
        write: turns an amount into text with its unit.
        note: a sentence on how to read it.

    **Limits** A run without any amount gives an empty bar, not a division by zero.
    """
    totals = [sum(parts.values()) for _, parts in rows]
    largest = max(totals, default=0.0) or 1.0
    phases = [phase for phase in PHASES if any(parts.get(phase) for _, parts in rows)]
    bars = [
        element(
            "div",
            element("p", element("span", label), element("strong", write(total)), class_="bar-label"),
            _bar(label, parts, phases, largest, write),
        )
        for (label, parts), total in zip(rows, totals, strict=True)
    ]
    return element(
        "figure",
        element("figcaption", element("h3", title)),
        element(
            "div",
            element("div", bars, class_="bars"),
            element("div", _table(rows, phases, write), class_="scroll", tabindex=0, role="region", aria_label=title),
            class_="body",
        ),
        element("p", note, class_="note"),
        class_="chart card",
    )


def _bar(
    label: str, parts: Mapping[str, float], phases: Sequence[str], largest: float, write: Callable[[float], str]
) -> Html:
    slices, start = [], 0.0
    for phase in phases:
        width = 100 * parts.get(phase, 0.0) / largest
        if width > 0:
            text = f"{PHASES[phase]}: {write(parts[phase])}"
            slices.append(
                element(
                    "rect",
                    element("title", text),
                    x=f"{start:.3f}%",
                    width=f"{width:.3f}%",
                    height="100%",
                    class_=f"p-{phase}",
                )
            )
            start += width
    shares = ", ".join(f"{PHASES[phase]} {write(parts[phase])}" for phase in phases if parts.get(phase))
    return element("svg", slices, class_="bar", role="img", aria_label=f"{label}: {shares or 'nothing recorded'}")


def _table(
    rows: Sequence[tuple[str, Mapping[str, float]]], phases: Sequence[str], write: Callable[[float], str]
) -> Html:
    several = len(rows) > 1
    head = element(
        "tr",
        element("th", "Phase", scope="col"),
        [element("th", name if several else "Amount", scope="col") for name, _ in rows],
    )
    body = []
    for phase in phases:
        cells = []
        for _, parts in rows:
            total = sum(parts.values()) or 1.0
            amount = parts.get(phase, 0.0)
            share = element("span", f"{100 * amount / total:.0f}%", class_="share")
            cells.append(element("td", write(amount) if amount else "–", share if amount else None))
        key = element("span", class_=f"key p-{phase}")
        body.append(element("tr", element("th", key, PHASES[phase], scope="row"), cells))
    return element("table", element("thead", head), element("tbody", body), class_="numbers")
