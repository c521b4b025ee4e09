"""Threads that each run a share of one piece of work, with a share of torch's own threads.

torch lets go of the interpreter's lock while it computes, so threads with a batch each keep several cores busy where
one batch split inside every product does not. They use the same weights in place: nothing is copied, sent or left over.

Left out: processes, and what the work is (``rollout.engine``).
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from heliostat.spans import shared_spans

Work = Callable[[Callable[[], bool]], object]
"""Takes a function that says whether the result is still wanted."""


def side_by_side(works: Sequence[Work]) -> None:
    """Run all works at once, a thread each, and return when all have ended; one alone runs in this thread.

    Raises:
        BaseException: the first error of a work, or an interrupt of this thread; the others are told to stop.

    **Limits** With one work this is a call.
    """
    if len(works) == 1:
        works[0](lambda: False)
        return
    num_threads = torch.get_num_threads()
    stopped = threading.Event()

    def run(work: Work) -> None:
        torch.set_num_threads(max(1, num_threads // len(works)))
        with shared_spans(len(works)):
            work(stopped.is_set)

    with ThreadPoolExecutor(len(works), thread_name_prefix="rollout") as pool:
        try:
            futures = [pool.submit(contextvars.copy_context().run, run, work) for work in works]
            for future in futures:
                future.result()
        finally:
            stopped.set()
            for future in futures:
                future.exception()  # wait until it has ended: the setting below is the process's
            torch.set_num_threads(num_threads)
