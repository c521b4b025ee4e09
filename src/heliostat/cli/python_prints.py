"""Make visible what Python itself prints during a command: tracebacks, warnings and log records.

Their messages quote what models and data files hold, and a terminal would obey it.

Left out: what this package prints (``printed``, ``terminal``), and what verifiers print
(``tasks.sandbox.child_output``).
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from heliostat.printed import say, visible


@contextmanager
def python_prints_visibly() -> Iterator[None]:
    """Inside, warnings and log records are made visible; the traceback of what leaves it is, too.

    **Limits**: handlers that format tracebacks by themselves are not covered.
    """
    show, factory = warnings.showwarning, logging.getLogRecordFactory()
    sys.excepthook = print_visibly  # for good: an error is printed after the block
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_VisibleRecord)
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.setLogRecordFactory(factory)


def print_visibly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook that prints what Python's prints, made visible."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    target = sys.stderr if file is None else file
    if target is not None:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n"), target)


class _VisibleRecord(logging.LogRecord):
    """A log record whose message and traceback are visible, whoever formats it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = visible("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        """The message, visible."""
        return visible(super().getMessage())
