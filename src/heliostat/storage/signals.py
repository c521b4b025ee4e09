"""Delay Ctrl-C and SIGTERM while files are swapped.

Left out: SIGKILL, which cannot be delayed; ``folders`` recovers from every intermediate state.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_held() -> Iterator[None]:
    """Deliver ``SIGINT`` and ``SIGTERM`` at the end of the block instead of inside it.

    The handlers are exchanged, not masked: a masked signal is delivered to another thread, and Python would then run
    its handler in the main thread after all.

    **Limits** Outside the main thread, and for handlers that were not set from Python, the block runs unprotected.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    previous: dict[int, Any] = {}
    for number in HELD:
        handler = signal.getsignal(number)
        if handler is not None:
            previous[number] = handler
            signal.signal(number, lambda got, frame: arrived.append(got))
    try:
        yield
    finally:
        for held, handler in previous.items():
            signal.signal(held, handler)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)
