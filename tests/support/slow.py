"""Name the tests that a quick run should leave out, so that the marks stay true."""

from collections import Counter
from collections.abc import Iterable

import pytest

LIMIT_S = 3.0
"""Seconds after which a test without the mark is named; the mark itself begins at half of one, of an idle processor."""


def unmarked(reports: Iterable[pytest.TestReport]) -> dict[str, float]:
    """Seconds of each test function without the mark ``slow`` whose cases together took more than ``LIMIT_S``."""
    seconds: Counter[str] = Counter()
    for report in reports:
        if "slow" not in report.keywords:
            seconds[report.nodeid.split("[")[0]] += report.duration
    return {name: total for name, total in seconds.most_common() if total > LIMIT_S}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "not slow" not in terminalreporter.config.option.markexpr:
        return
    found = unmarked(report for report in terminalreporter.getreports("passed") if report.when == "call")
    if found:
        terminalreporter.section("to be marked slow")
    for name, seconds in found.items():
        terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
