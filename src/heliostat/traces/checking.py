"""Reading a bank that may be damaged: what is whole comes out, what is not is reported, and nothing ends the reading.

Left out: judging rewards again, which needs a task (``importing.reverify``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field

from heliostat.traces.bank import Bank, to_trace
from heliostat.traces.record import Trace

_AT_ONCE = 500
_SHOWN = 20


@dataclass(slots=True)
class Findings:
    """What was read, and what could not be.

    Attributes:
        problems: one sentence each, with the place; the first ``20`` of ``num_problems``.
    """

    num_read: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def report(self, place: str, message: str) -> None:
        """Take note of something that was skipped."""
        self.num_problems += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(f"{place}: {message}")

    def lines(self) -> list[str]:
        """The problems, for people."""
        more = self.num_problems - len(self.problems)
        return self.problems + ([f"... and {more} more"] if more else [])


def whole_traces(bank: Bank, findings: Findings) -> Iterator[Trace]:
    """Every trace that can still be read and matches its digest; the others go to ``findings`` with their row id."""
    sources = bank.sources()
    last = _last_id(bank, findings)
    for first in range(1, last + 1, _AT_ONCE):
        for row in _rows(bank, first, min(last, first + _AT_ONCE - 1), findings):
            try:
                trace = to_trace(row, sources)
            except (ValueError, TypeError, KeyError) as error:  # SQLite columns hold any type
                findings.report(f"row {row[0]}", f"damaged ({error})")
                continue
            findings.num_read += 1
            yield trace


def check_bank(bank: Bank) -> Findings:
    """SQLite's own check of the file, then every row against its digest."""
    findings = Findings()
    try:
        for (message,) in bank.query("PRAGMA integrity_check(20)"):
            if message != "ok":
                findings.report("file", message)
    except sqlite3.DatabaseError as error:
        findings.report("file", str(error))
    for _ in whole_traces(bank, findings):
        pass
    return findings


def _last_id(bank: Bank, findings: Findings) -> int:
    try:
        return int(bank.query("SELECT coalesce(max(id), 0) FROM traces")[0][0])
    except sqlite3.DatabaseError as error:
        findings.report("file", f"the table of traces cannot be read ({error})")
        return 0


def _rows(bank: Bank, first: int, last: int, findings: Findings) -> Iterator[tuple[object, ...]]:
    """Rows of a range of ids, one by one where they cannot be read together."""
    try:
        yield from list(bank.rows("WHERE t.id BETWEEN ? AND ?", (first, last)))
    except sqlite3.DatabaseError as error:
        if first == last:
            findings.report(f"row {first}", str(error))
            return
        middle = (first + last) // 2
        yield from _rows(bank, first, middle, findings)
        yield from _rows(bank, middle + 1, last, findings)
