"""Threads that each run a share of one piece of work, with a share of torch's own threads.

torch releases the GIL while it computes. Threads with a batch each therefore keep several cores busy where one batch,
split inside every product, does not. They use the same weights in place.

Left out: processes, and the work itself (``decode_worker``, ``gradient_workers``).
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from heliostat.spans import shared_spans

Job = Callable[[Callable[[], bool]], object]
"""A function to run, given one that returns whether it should stop early."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within this block, torch computes with this many threads; 0: as it does now."""
    before = torch.get_num_threads()
    if not count or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_threads(jobs: Sequence[Job]) -> None:
    """Run all jobs in parallel, one thread each, and return when all have ended.

    Raises:
        BaseException: the first error of a job, or an interrupt of this thread; the other jobs are stopped.

    **Limits** One job runs in the calling thread: this is then a plain call.
    """
    if len(jobs) == 1:
        jobs[0](lambda: False)
        return
    num_threads = torch.get_num_threads()
    stopped = threading.Event()

    def run(job: Job) -> None:
        torch.set_num_threads(max(1, num_threads // len(jobs)))
        with shared_spans(len(jobs)):
            job(stopped.is_set)

    with ThreadPoolExecutor(len(jobs), thread_name_prefix="worker") as pool:
        try:
            futures = [pool.submit(contextvars.copy_context().run, run, job) for job in jobs]
            for future in futures:
                future.result()
        finally:
            stopped.set()
            for future in futures:
                future.exception()  # wait until it has ended: the setting below is global to the process
            torch.set_num_threads(num_threads)
