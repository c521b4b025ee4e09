"""Named spans of the hot path: names in torch's profiler, and wall seconds where a caller times them.

    with span("decode"):            in the code that does the work
        ...
    with timed_spans() as seconds:  in the code that measures; afterwards seconds["decode"]

Left out: nesting (a span's seconds include what runs inside it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

import torch
from torch.profiler import record_function

_TIMED: ContextVar[dict[str, float] | None] = ContextVar("heliostat_spans", default=None)
_SHARE: ContextVar[float] = ContextVar("heliostat_span_share", default=1.0)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Name the block ``heliostat/<name>`` in a trace, and add its wall seconds up if spans are being timed."""
    seconds = _TIMED.get()
    with record_function(f"heliostat/{name}"):
        if seconds is None:
            yield
            return
        began = perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels run asynchronously
        seconds[name] = seconds.get(name, 0.0) + (perf_counter() - began) * _SHARE.get()


@contextmanager
def timed_spans() -> Iterator[dict[str, float]]:
    """Time every span of this thread until the end of the block.

    **Limits** Without this, a span costs two calls into torch and no clock is read.
    """
    seconds: dict[str, float] = {}
    token = _TIMED.set(seconds)
    try:
        yield seconds
    finally:
        _TIMED.reset(token)


@contextmanager
def shared_spans(num_threads: int) -> Iterator[None]:
    """Divide the span seconds of one of ``num_threads`` parallel threads, so that threads add up to wall seconds."""
    token = _SHARE.set(_SHARE.get() / num_threads)
    try:
        yield
    finally:
        _SHARE.reset(token)
