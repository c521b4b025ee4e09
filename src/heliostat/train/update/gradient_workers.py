"""Threads that differentiate micro-batches in parallel, each on one core, with one gradient as their result.

    part 0   worker a   forward, backward -> g_0          the model's gradient is ((g_0 + g_1) + g_2) + ...
    part 1   worker b   forward, backward -> g_1          whoever finished first
    part 2   worker a   ...

A product that is split over threads ends at a barrier, where threads wait for the slowest one and, if another program
has its core, for that program. Workers meet only when their gradients are added.

Workers compute with copies of the model that share its weights and have gradients of their own.

Left out: the micro-batches (``packing``), and several processes (``rank_sync``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from heliostat.models import LoadedModel, gradient_copy_of, share_weights
from heliostat.models.concurrency import is_watched
from heliostat.optim.precision.gradients import add_gradient
from heliostat.threads import run_in_threads
from heliostat.train.distributed.fsdp import is_sharded
from heliostat.train.logprobs.packing import Cost, Row, balanced_budget, microbatches
from heliostat.train.logprobs.policy import Policy

Part = Sequence[Row]
Result = TypeVar("Result")


class GradientWorkers:
    """Threads that add up the gradient of micro-batches, each with a copy of the policy's model.

    Args:
        num_workers: threads; 0 for one per thread of torch.

    Limits:
        Any number of workers: the same gradient, bit for bit, where an operation runs on one thread.
        One worker, or one micro-batch: the backward passes of a plain loop, with all of torch's threads in each.
    """

    def __init__(self, num_workers: int = 0) -> None:
        self._num_workers = num_workers
        self._loaded: LoadedModel | None = None
        self._copies: list[LoadedModel] = []

    def count(self, policy: Policy) -> int:
        """Return the threads that run; 1 where a copy of the model would not do the same."""
        if not _shares_weights(policy) or is_watched(policy.loaded.model):  # hooks would miss a copy's passes
            return 1
        return self._num_workers or torch.get_num_threads()

    def split(
        self, policy: Policy, rows: Sequence[Row], max_tokens: int, *, whole_groups: bool = False
    ) -> list[list[Row]]:
        """Split rows into micro-batches of at most ``max_tokens``: on a CPU into enough for many workers.

        A group above ``max_tokens`` is split too, unless ``whole_groups``. The split does not depend on the number of
        workers, and so neither does the gradient.
        """
        cost: Cost = policy.padded_tokens
        if _shares_weights(policy):
            max_tokens = balanced_budget(rows, max_tokens, cost)
        return microbatches(rows, max_tokens, cost, whole_groups=whole_groups)

    def run(self, policy: Policy, parts: Sequence[Part], work: Callable[[Policy, Part], Result]) -> list[Result]:
        """Run ``work`` on every micro-batch, and add its gradients up in the policy's model.

        Args:
            work: computes a loss with the policy that it is given and calls ``backward``; it runs in several threads.

        Returns:
            The results of ``work`` by micro-batch.
        """
        num_workers = min(self.count(policy), len(parts))
        if num_workers < 2:
            return [work(policy, part) for part in parts]
        waiting: SimpleQueue[int] = SimpleQueue()
        for index in range(len(parts)):
            waiting.put(index)
        results: dict[int, Result] = {}
        total = _OrderedSum(list(policy.loaded.model.parameters()))

        def job(own: Policy, is_stopped: Callable[[], bool]) -> None:
            while not is_stopped():
                try:
                    index = waiting.get_nowait()
                except Empty:
                    return
                results[index] = work(own, parts[index])
                total.add(index, _taken(own.loaded))

        run_in_threads([partial(job, own) for own in self._policies(policy, num_workers)])
        return [results[index] for index in range(len(parts))]

    def _policies(self, policy: Policy, num_workers: int) -> list[Policy]:
        """Return as many policies like this one, with copies of its model that compute with its current weights."""
        if policy.loaded is not self._loaded:
            self._loaded, self._copies = policy.loaded, []
        for _ in range(num_workers - len(self._copies)):
            self._copies.append(gradient_copy_of(policy.loaded))
        for copied in self._copies[:num_workers]:
            share_weights(copied, policy.loaded)
        return [policy.with_model(copied) for copied in self._copies[:num_workers]]


def _shares_weights(policy: Policy) -> bool:
    return policy.device.type == "cpu" and not is_sharded(policy.loaded.model)


@dataclass(slots=True)
class _OrderedSum:
    """A sum of gradients in the parameters' ``.grad``, in the order of their indices, whichever comes first."""

    parameters: Sequence[Tensor]
    _early: dict[int, list[Tensor | None]] = field(default_factory=dict)
    _num_added: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, index: int, gradients: list[Tensor | None]) -> None:
        """Add the gradients of a micro-batch, and those that waited for it."""
        with self._lock:
            self._early[index] = gradients
            while (following := self._early.pop(self._num_added, None)) is not None:
                for parameter, gradient in zip(self.parameters, following, strict=True):
                    if gradient is not None:
                        add_gradient(parameter, gradient)
                self._num_added += 1


def _taken(loaded: LoadedModel) -> list[Tensor | None]:
    """Take the gradients of a copy out of it."""
    parameters = list(loaded.model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients
