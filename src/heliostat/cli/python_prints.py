"""Hidden characters made visible in Python's own output during a command: tracebacks, warnings and log records.

Their messages quote text of models and data files, and a terminal would obey control characters in it.

Left out: output of this package (``printed``, ``terminal``) and of verifiers (``tasks.sandbox.child_output``).
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
    """Show hidden characters in warnings and log records inside the block, and in the traceback of an error there.

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
    """Print an uncaught exception as Python does, with hidden characters shown."""
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
    """A log record that shows hidden characters in its message and traceback, under any formatter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = visible("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        """Return the message with hidden characters shown."""
        return visible(super().getMessage())
