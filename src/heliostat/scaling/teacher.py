"""A teacher's part of one step: its forward passes and weights in the trainers, or what is sent to its server.

    in this process   one forward pass over the step's trained tokens; its weights, sharded like the policy's
    on a server       every completion with its whole prompt, in requests

Left out: the server's own time and memory, whose model may be any; traffic of a sharded teacher's layers; a hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from heliostat.cards import Card
from heliostat.config import ConfigError, Recipe, named_by
from heliostat.run_models import model_of
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.memory import STORED
from heliostat.scaling.shapes import ModelShape, read_shape

REQUEST_SEQUENCES = 16
"""Completions of one request, at most (``train.teachers.served_log_probs``)."""


@dataclass(frozen=True, slots=True, repr=False)
class TeacherLoad(Card):
    """One step of a teacher.

    Attributes:
        weights: of a model in the trainers' processes; 0 for the policy itself, and for one on a server.
        weight_bytes: of these on each trainer.
        flops: of all trainers together.
        sent_tokens, sent_requests: to a server.
    """

    weights: int = 0
    weight_bytes: float = 0.0
    flops: float = 0.0
    sent_tokens: float = 0.0
    sent_requests: int = 0


def teacher_load(
    recipe: Recipe, policy: ModelShape, job: Job, layout: GpuLayout, catalog: Mapping[str, ModelShape]
) -> TeacherLoad | None:
    """Compute the load of a recipe's teacher; ``None`` without one.

    Raises:
        ConfigError: the sizes of its model cannot be read.

    **Limits**: FLOPs are the ledger's for a batch of equal prompts and completions.
    """
    section = recipe.teacher
    if not section.enabled:
        return None
    if section.url:
        in_one = min(REQUEST_SEQUENCES, ceil(job.num_rows / section.num_requests))
        tokens = job.num_rows * (job.prompt_tokens + job.mean_tokens)
        return TeacherLoad(sent_tokens=tokens, sent_requests=ceil(job.num_rows / in_one))
    if section.is_self:
        return TeacherLoad(flops=_flops(policy, job))
    try:
        shape = read_shape(model_of(section.path), catalog)
    except ConfigError as error:
        raise named_by("teacher.path", error) from error
    size = STORED["bfloat16" if section.dtype == "auto" else section.dtype]
    held = size * shape.num_parameters / (layout.num_trainers if layout.sharded else 1)
    return TeacherLoad(shape.num_parameters, held, _flops(shape, job))


def _flops(shape: ModelShape, job: Job) -> float:
    return shape.forward_flops(job.trained_tokens, job.trained_context, job.num_rows * job.mean_tokens)
