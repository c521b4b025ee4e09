"""Ctrl-C without loss: the first one stops the run between phases and saves; the second one stops it at once.

Left out: SIGKILL and power failures (checkpoints cover those).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):
    """The user asked the run to stop; all complete steps can be saved."""


class InterruptHandler:
    """A context in which Ctrl-C and SIGTERM set a flag, which the loop checks between phases.

    Args:
        note: shows a line to the user.
        agree: maps this process's flag to one that all processes of the run share.
    """

    def __init__(self, note: Callable[[str], None], agree: Callable[[bool], bool] = bool) -> None:
        self.note = note
        self.agree = agree
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python sets signal handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.note("stopping after this phase and saving; press Ctrl-C again to stop at once")

    def check(self) -> None:
        """Stop the run here if the user asked for it.

        Raises:
            Interrupted: Ctrl-C was pressed, or SIGTERM received.
        """
        if self.agree(self.requested):
            raise Interrupted
