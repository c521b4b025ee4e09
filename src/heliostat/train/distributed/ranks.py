"""Runtime of a run: device, threads, determinism, and the collectives of its processes (ranks, under ``torchrun``).

    heliostat train R                                   one rank: every collective below is the identity
    torchrun --nproc-per-node 2 -m heliostat train R    two: each samples, judges and differentiates its share

Collectives make every input of a decision (groups, metrics, a request to stop) equal on all ranks. The training loop
therefore reads like that of one process, and ranks always decide alike. Losses are multiplied by the number of ranks,
and their gradients averaged over ranks: torch's own convention, in which a sum stays a sum.

Left out: weights sharded over ranks (``fsdp``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.config import ConfigError, DistributedSection, RunSection
from heliostat.optim.precision.gradients import no_gradient
from heliostat.types import Mean, Prompt

T = TypeVar("T")
BUCKET = 2**23
"""Gradient entries per all-reduce (32 MiB in float32)."""


TRANSPORTS = ("gloo", "NCCL", "ProcessGroup")
"""Names that identify errors of a transport that raises no type of its own."""


class RankLost(RuntimeError):
    """Another process of this run has ended or does not answer."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One process of a run, and its collectives with the others.

    Attributes:
        sharded: whether every rank holds only a shard of each weight (``fsdp``).
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks for torch; ``None`` with one rank."""
        return dist.group.WORLD if self.world_size > 1 else None

    # -- collectives ------------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Gather every rank's value, in rank order, on every rank.

        Raises:
            RankLost: a rank has died or does not answer.
        """
        if self.world_size == 1:
            return [value]
        everyone: list[Any] = [None] * self.world_size
        with readable_dist_errors():
            dist.all_gather_object(everyone, value)
        return everyone

    def broadcast(self, value: T) -> T:
        """Return the main rank's value on every rank."""
        return self.gather(value)[0]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return any(self.gather(flag))

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum values over ranks by key; a key that a rank lacks counts as 0 there."""
        everyone = self.gather(dict(values))
        keys = dict.fromkeys(key for one in everyone for key in one)
        return {key: sum(one[key] for one in everyone if key in one) for key in keys}

    def merge(self, means: Mapping[str, Mean]) -> dict[str, Mean]:
        """Merge means over ranks, weighted by their counts."""
        merged: dict[str, Mean] = {}
        for one in self.gather(dict(means)):
            for key, mean in one.items():
                merged[key] = merged[key] + mean if key in merged else mean
        return merged

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Average whole gradients over ranks, in buckets. Absent gradients count as 0; FSDP2 averages sharded ones."""
        if self.world_size == 1 or self.sharded:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = no_gradient(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with readable_dist_errors():
                dist.all_reduce(flat)
            flat /= self.world_size
            for gradient, piece in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Raise an exception of any rank on all ranks."""
        failure: Exception | None = None
        try:
            yield
        except RankLost:
            raise
        except Exception as error:
            if self.world_size == 1:
                raise
            failure = error
        failures = [one for one in self.gather(failure) if one is not None] if self.world_size > 1 else []
        if failures:
            raise failure or failures[0]

    def run_on_main(self, make: Callable[[], T]) -> T:
        """Run ``make`` on rank 0 and broadcast its result; an exception is re-raised on every rank."""
        if self.world_size == 1:
            return make()
        with self.raise_on_all_ranks():
            made = make() if self.is_main else None
        return cast(T, self.broadcast(made))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main rank run the block first; the others run it after that, and find its work done."""
        if not self.is_main:
            self.gather(None)
        yield
        if self.is_main:
            self.gather(None)

    # -- shares -----------------------------------------------------------------------------------------------------

    def shard_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return this rank's prompts; copies of one prompt stay together, since they number their random streams."""
        keys = list(dict.fromkeys(prompt.group_key for prompt in prompts))
        owner = {key: index % self.world_size for index, key in enumerate(keys)}
        return [prompt for prompt in prompts if owner[prompt.group_key] == self.rank]

    def gather_groups(self, prompts: Sequence[Prompt], mine: Sequence[T]) -> list[T]:
        """Gather the results of all ranks in the order of ``prompts``.

        Args:
            mine: this rank's results, one for each prompt of its share (``shard_prompts``).
        """
        if self.world_size == 1:
            return list(mine)
        keys = list(dict.fromkeys(prompt.group_key for prompt in prompts))
        everyone = [iter(one) for one in self.gather(list(mine))]
        owner = {key: everyone[index % self.world_size] for index, key in enumerate(keys)}
        return [next(owner[prompt.group_key]) for prompt in prompts]

    def shard_balanced(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """Return the items of this rank: largest first, each to the rank with the least so far, alike on all ranks."""
        if self.world_size == 1:
            return list(items)
        loads = [0] * self.world_size
        mine = []
        for index in sorted(range(len(items)), key=lambda index: -sizes[index]):
            rank = loads.index(min(loads))
            loads[rank] += sizes[index]
            if rank == self.rank:
                mine.append(index)
        return [items[index] for index in sorted(mine)]

    def num_dummy_passes(self, num_parts: int) -> int:
        """Count the zero-weight forward and backward passes that this rank must add to its own.

        Sharded weights are gathered by all ranks together, so all ranks run equally many passes. Hooks that record
        layers need at least one.
        """
        if self.world_size == 1:
            return 0
        most = max(self.gather(num_parts))
        wanted = most if self.sharded else min(1, most)
        return max(0, wanted - num_parts)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.numel() for g in bucket) > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def readable_dist_errors() -> Iterator[None]:
    """Replace the transport's long errors between ranks by one sentence; other errors pass.

    Raises:
        RankLost: a rank has died or does not answer.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error) for name in TRANSPORTS):
            raise
        raise RankLost(
            f"another process of this run has ended or does not answer ({' '.join(str(error).split())[:120]}); the "
            "last checkpoint is complete, and the same command continues from it"
        ) from error


def start_runtime(run: RunSection, distributed: DistributedSection | None = None) -> Runtime:
    """Set threads, determinism and seeds of this process, and join the process group of ``torchrun``, if any.

    Randomness in training never comes from a global generator: every draw has its own seed derived from the run's, so
    that a resumed run repeats it. The global seed fixes only the draws of libraries.

    Raises:
        ConfigError: several processes were started for something that runs in one (``distributed`` is ``None``).
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world_size > 1 and distributed is None:
        raise ConfigError("only heliostat train and sft can run in several processes; start this without torchrun")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(run.num_threads or max(1, _usable_cores() // here))
    torch.manual_seed(run.seed)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every new tensor takes time, and no result reads it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if world_size == 1 or distributed is None:
        return Runtime(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=distributed.timeout_s))
    return Runtime(device, rank, world_size, sharded=distributed.placement == "sharded")


def _usable_cores() -> int:
    """Count the cores that this process may use; macOS has no affinity, and so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running(run: RunSection, distributed: DistributedSection) -> Iterator[Runtime]:
    """Start a runtime, and leave its process group at the end."""
    try:
        yield start_runtime(run, distributed)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
