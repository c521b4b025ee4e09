"""Ctrl-C without loss: the first one stops after the current phase, the second one at once.

Left out: SIGKILL and power cuts, which checkpoints are for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):
    """The user asked the run to stop; the last complete step can be saved."""


class InterruptHandler:
    """Context manager in which Ctrl-C and SIGTERM set a flag that the loop checks between phases.

    Args:
        note: shows a line to the user.
        agree: combines the flags of all processes of a run.
    """

    def __init__(self, note: Callable[[str], None], agree: Callable[[bool], bool] = bool) -> None:
        self.note = note
        self.agree = agree
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread can set signal handlers
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
