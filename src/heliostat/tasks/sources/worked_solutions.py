"""Write worked solutions for supervised warm starts, by rule from a question.

A writer returns the *working* only; the loader adds the answer marker and the oracle answer, so a worked solution
always ends in the text that the verifier reads. Writers:

    running-total   47 + 58 - 3   ->  47+58=105, 105-3=102        then "= 102" on a line of its own
    chain           47 + 58 - 3   ->  47+58=105-3                 then "=102": the same in the fewest characters
    columns         47 + 58       ->  7+8=15,4+5+1=10             then "#105"

``columns`` writes steps that a very small model can learn one character at a time, rightmost column first:

    addition        a+b(+1)=cd    carry c, digit d:                            7+8=15   4+5+1=10
    subtraction     a-b(-1)=0d    digit d, nothing borrowed;   =<d  borrowed:  3-8=<5   4-1-1=02
    negative        -(...)        the same for the magnitudes swapped:         12-58: -(8-2=06,5-1=04)
    more terms      ;             each later step starts from the total before it, which ":" states

Left out: anything that searches, and products, quotients and parentheses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from heliostat.config import ConfigError, nearest
from heliostat.named_imports import resolve

Write = Callable[[str, str, Mapping[str, Any]], str]
Term = tuple[bool, int]
"""Whether a number is added, and the number."""

SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much a careless total may be off."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A writer of worked solutions.

    Attributes:
        write: ``(question, answer, columns) -> working``.
        marker: put between working and answer unless the recipe sets its own ``answer_after``.
        datasets: reasoning-gym datasets it can read; empty: any.
        from_totals: the working with the total after each term given, where totals are all there is to it.
    """

    write: Write
    marker: str
    datasets: tuple[str, ...] = ()
    from_totals: Callable[[list[Term], list[int]], str] | None = None

    def careless(self, question: str, columns: Mapping[str, Any], slips: float, rng: np.random.Generator) -> str:
        """Write a solution in which each total after the first is wrong with probability ``slips``; errors carry over.

        A slip is off by 1, 2 or 10 in either direction.

        Limits:
            ``slips = 0``: the right solution.
        """
        assert self.from_totals is not None
        terms = _terms(question, columns)
        wrong = rng.random(len(terms) - 1) < slips
        totals = _totals(terms, [0, *(wrong * rng.choice(SLIPS, size=len(terms) - 1)).tolist()])
        return f"{self.from_totals(terms, totals)}{self.marker}{totals[-1]}"


def find_writer(name: str, dataset: str, folder: str = "") -> Writer:
    """Return the writer called ``name``; an empty name gives the oracle answer without working.

    Raises:
        ConfigError: no such writer, or it cannot read ``dataset``.
    """
    if not name:
        return Writer(write=lambda question, answer, columns: "", marker="")
    if ":" in name:
        try:
            return Writer(write=resolve(name, folder), marker="")
        except ValueError as error:
            raise ConfigError(f"task.solution: {error}") from error
    if name not in WRITERS:
        raise ConfigError(
            f"unknown worked-solution writer '{name}'{nearest(name, WRITERS)}; there are: {', '.join(WRITERS)}, "
            "module:function, or nothing for the bare answer"
        )
    writer = WRITERS[name]
    if writer.datasets and dataset not in writer.datasets:
        raise ConfigError(f"task.solution = '{name}' works out {', '.join(writer.datasets)}, not {dataset}")
    return writer


def running_total(question: str, answer: str, columns: Mapping[str, Any]) -> str:
    """Write each partial sum: ``47+58=105, 105-3=102`` and a line break."""
    terms = _terms(question, columns)
    return _stated(terms, _totals(terms))


def _stated(terms: list[Term], totals: list[int]) -> str:
    steps = [
        f"{before}{'+' if plus else '-'}{number}={after}"
        for (plus, number), (before, after) in zip(terms[1:], pairwise(totals), strict=True)
    ]
    return ", ".join(steps or [str(totals[0])]) + "\n"


def chain(question: str, answer: str, columns: Mapping[str, Any]) -> str:
    """Write each step after the previous total: ``47+58=105-3``."""
    terms = _terms(question, columns)
    return _chained(terms, _totals(terms))


def _chained(terms: list[Term], totals: list[int]) -> str:
    steps = [
        f"{before}{'+' if plus else '-'}{number}" for (plus, number), before in zip(terms[1:], totals, strict=False)
    ]
    return "=".join(steps or [str(terms[0][1])])


def column_sums(question: str, answer: str, columns: Mapping[str, Any]) -> str:
    """Write column sums with carries and borrows, rightmost column first; see the head of this file."""
    terms = _terms(question, columns)
    totals = _totals(terms)
    steps = [
        _column_step(before, number if plus else -number)
        for (plus, number), before in zip(terms[1:], totals, strict=False)
    ]
    stated = [f"{step}:{total}" for step, total in zip(steps[:-1], totals[1:], strict=False)]
    return ";".join(stated + steps[-1:])


SUMS = ("chain_sum", "basic_arithmetic")  # the latter with operators + and - alone, and no parentheses

WRITERS: dict[str, Writer] = {
    "running-total": Writer(running_total, marker="= ", datasets=SUMS, from_totals=_stated),
    "chain": Writer(chain, marker="=", datasets=SUMS, from_totals=_chained),
    "columns": Writer(column_sums, marker="#", datasets=SUMS),
}


def _terms(question: str, columns: Mapping[str, Any]) -> list[Term]:
    """Parse ``47 + 58 - 3`` to ``[(True, 47), (True, 58), (False, 3)]``."""
    expression = columns.get("metadata", {}).get("expression") or question.rpartition(":")[2].rstrip(" =")
    words = str(expression).split()
    try:
        signs = [{"+": True, "-": False}[word] for word in words[1::2]]
        return list(zip([True, *signs], [int(word) for word in words[0::2]], strict=True))
    except (KeyError, ValueError) as error:
        raise ValueError(f"cannot read a sum of numbers out of the question {question!r}") from error


def _totals(terms: list[Term], slips: Sequence[int] | None = None) -> list[int]:
    """Return the running total after each term, each changed by its slip if slips are given."""
    totals = [0]
    for (plus, number), slip in zip(terms, slips or [0] * len(terms), strict=True):
        totals.append(totals[-1] + (number if plus else -number) + slip)
    return totals[1:]


def _column_step(left: int, right: int) -> str:
    """Write ``left + right``: magnitudes are added if the signs agree, else the smaller one is subtracted."""
    same_sign = (left < 0) == (right < 0) or right == 0 or left == 0
    big, small = max(abs(left), abs(right)), min(abs(left), abs(right))
    working = _add(abs(left), abs(right)) if same_sign else _subtract(big, small)
    return f"-({working})" if left + right < 0 else working


def _digits(first: int, second: int) -> list[tuple[int, int]]:
    """Return the digits of both numbers, rightmost first, the shorter one padded with zeros."""
    width = max(len(str(first)), len(str(second)))
    return [(int(a), int(b)) for a, b in zip(f"{first:0{width}}"[::-1], f"{second:0{width}}"[::-1], strict=True)]


def _add(first: int, second: int) -> str:
    carry, parts = 0, []
    for a, b in _digits(first, second):
        total = a + b + carry
        parts.append(f"{a}+{b}{'+1' if carry else ''}={total:02}")
        carry = total // 10
    return ",".join(parts)


def _subtract(big: int, small: int) -> str:
    borrow, parts = 0, []
    for a, b in _digits(big, small):
        left = a - b - borrow
        parts.append(f"{a}-{b}{'-1' if borrow else ''}={'<' if left < 0 else '0'}{left % 10}")
        borrow = int(left < 0)
    return ",".join(parts)
