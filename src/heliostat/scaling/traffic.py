"""Bytes between GPUs in one step: weights, gradients, completions, and the weights sent to samplers.

Collectives are given as the whole tensor they work on, since that can be counted in a real run. In a ring of ``n``
ranks each sends ``(n - 1) / n`` of a gathered or scattered tensor, and twice that of a reduced one.

Left out: tensor-parallel traffic inside a sampler, and checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from heliostat.cards import Card
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.memory import STORED
from heliostat.scaling.shapes import ModelShape

NUM_DIAGNOSED = 8
"""Groups scored again after a step for its numbers, at most; an eighth of the step's (``train.trainer``)."""

TOKEN_BYTES, ROW_BYTES = 14.0, 150.0
"""Of a completion between ranks, pickled: per token (id, log-probability, entropy, text) and besides. Measured."""


@dataclass(frozen=True, slots=True, repr=False)
class Traffic(Card):
    """One step's collectives: bytes of whole tensors, per rank.

    Attributes:
        sampling_all_gather, training_all_gather: weights gathered for sampling, and for forward and backward passes.
        reduce_scatter: gradients of sharded weights, once per micro-batch.
        all_reduce: gradients of replicated weights, once per update.
        object_all_gather: completions and metrics, from every rank to every rank.
        all_to_all: tokens sent to experts on other ranks and back.
        sync: weights sent to samplers of their own, once per replica.
    """

    sampling_all_gather: float = 0.0
    training_all_gather: float = 0.0
    reduce_scatter: float = 0.0
    all_reduce: float = 0.0
    object_all_gather: float = 0.0
    all_to_all: float = 0.0
    sync: float = 0.0

    def wire(self, num_ranks: int) -> float:
        """Compute the bytes that a rank sends in training and before sampling, by ring algorithms.

        **Limits**: one rank sends nothing.
        """
        share = (num_ranks - 1) / num_ranks
        gathered = (
            self.sampling_all_gather
            + self.training_all_gather
            + self.reduce_scatter
            + self.object_all_gather
            + self.all_to_all
        )
        return share * (gathered + 2 * self.all_reduce)


def num_passes(job: Job, num_ranks: int) -> tuple[int, int]:
    """Count a rank's micro-batches with a gradient in one step, and its forward passes without one.

    The latter score tokens for an anchor or a reference, and some groups again for the step's metrics.
    """
    trained = job.num_updates * job.num_microbatches(num_ranks)
    scored = ceil(job.scored_forwards * trained)
    return trained, scored + ceil(diagnosed_tokens(job, num_ranks) / job.microbatch_tokens)


def diagnosed_tokens(job: Job, num_ranks: int) -> float:
    """Count the tokens that the busiest rank scores again for the step's metrics: those of whole groups."""
    if not job.diagnosed:
        return 0.0
    num_groups = min(NUM_DIAGNOSED, ceil(job.num_prompts / 8))
    return job.trained_tokens * ceil(num_groups / num_ranks) / job.num_prompts


def step_traffic(
    shape: ModelShape, job: Job, layout: GpuLayout, stored: str = "bfloat16", computed: str | None = None
) -> Traffic:
    """Compute the bytes that one step moves.

    Args:
        computed: dtype of gathered weights where it is not ``stored``; gradients are then reduced in float32.

    **Limits**: one rank, nothing but ``sync``. On two ranks the counts of a real run: gradients and replicated weights
    exactly, gathered ones up to a layer per step, which torch sometimes fetches in vain.
    """
    num, size = layout.num_trainers, STORED[stored]
    used, reduced = STORED[computed or stored], 4 if computed and computed != stored else size
    sync = 2.0 * shape.num_parameters if layout.num_samplers else 0.0
    if num == 1:
        return Traffic(sync=sync)
    completions = job.num_rows * (TOKEN_BYTES * job.mean_tokens + ROW_BYTES)
    moved = shape.num_parameters - shape.num_expert_parameters * (1 - 1 / layout.expert_ways)
    if not layout.sharded:
        return Traffic(all_reduce=4.0 * moved * job.num_updates, object_all_gather=completions, sync=sync)
    trained, scored = num_passes(job, num)
    return Traffic(
        sampling_all_gather=0.0 if layout.num_samplers else float(used * shape.num_parameters),
        training_all_gather=float(used * moved * (2 * trained + scored)),
        reduce_scatter=float(reduced * moved * trained),
        object_all_gather=completions,
        all_to_all=_all_to_all(shape, job, layout),
        sync=sync,
    )


def _all_to_all(shape: ModelShape, job: Job, layout: GpuLayout) -> float:
    """Compute the bytes to experts and back, in a forward, its backward and, if recomputed, once more; bfloat16."""
    experts = shape.experts
    if experts is None or layout.expert_ways == 1:
        return 0.0
    passes = 4 + (2 if job.gradient_checkpointing else 0) + 2 * job.scored_forwards
    num_layers = shape.num_layers - experts.num_dense_layers
    tokens = job.trained_tokens / layout.num_trainers
    return passes * 2.0 * shape.hidden * experts.num_used * num_layers * tokens
