"""Read a bank that may be damaged: yield intact traces, report damaged ones, and never stop early.

Left out: judging rewards again, which needs a task (``importing.reverify``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from heliostat.traces.bank import Bank, to_trace
from heliostat.traces.database import BankError
from heliostat.traces.record import Trace
from heliostat.traces.row_issues import RowIssues

_AT_ONCE = 500


def whole_traces(bank: Bank, issues: RowIssues) -> Iterator[Trace]:
    """Yield every trace that can be read and matches its digest; the others are reported in ``issues`` by row id."""
    sources = bank.sources()
    last = _last_id(bank, issues)
    for first in range(1, last + 1, _AT_ONCE):
        for row in _rows(bank, first, min(last, first + _AT_ONCE - 1), issues):
            try:
                trace = to_trace(row, sources)
            except ValueError as error:
                issues.report(f"row {row[0]}", f"damaged ({error})")
                continue
            issues.num_read += 1
            yield trace


def check_bank(bank: Bank) -> RowIssues:
    """Check the file with SQLite, then every row against its digest and checksum."""
    issues = RowIssues()
    try:  # finds damage that rows do not show: an index that misses some of them
        for (message,) in bank.query("PRAGMA integrity_check(20)"):
            if message != "ok":
                issues.report("file", message)
        bank.attempts()
    except BankError as error:
        issues.report("file", str(error))
    for _ in whole_traces(bank, issues):
        pass
    return issues


def _last_id(bank: Bank, issues: RowIssues) -> int:
    try:
        last = int(bank.query("SELECT coalesce(max(id), 0) FROM traces")[0][0])
        largest = bank.path.stat().st_size  # rows are numbered from 1 without gaps and take more than a byte each
        if last > largest:
            issues.report(f"row {last}", "damaged (no bank of this size has a row of that number)")
        return min(last, largest)
    except BankError as error:
        issues.report("file", f"the table of traces cannot be read ({error})")
        return 0


def _rows(bank: Bank, first: int, last: int, issues: RowIssues) -> Iterator[tuple[Any, ...]]:
    """Read rows of a range of ids, one by one if they cannot be read together."""
    try:
        yield from list(bank.rows("WHERE t.id BETWEEN ? AND ?", (first, last)))
    except BankError as error:
        if first == last:
            issues.report(f"row {first}", str(error))
            return
        middle = (first + last) // 2
        yield from _rows(bank, first, middle, issues)
        yield from _rows(bank, middle + 1, last, issues)
