"""The loss of one optimizer step, micro-batch by micro-batch: an objective of rewards, a teacher's distance, or both.

    loss = objective + weight sum_i w_i sum_t distance_t / normalizer

Lengths enter the teacher's term as they enter the objective (``objectives.lengths``).

Left out: the distances (``objectives.distillation``), and the backward pass (``updater``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from heliostat.objectives import Objective
from heliostat.spans import span
from heliostat.train.logprobs.packing import Row, token_batch
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.teacher import Lesson, Teacher
from heliostat.types import LossOutput, Mean, TokenBatch


class PartLoss(NamedTuple):
    """The loss of one micro-batch, with the log-probabilities and the batch that it was computed from."""

    logp_new: Float[Tensor, " token"]
    tokens: TokenBatch
    output: LossOutput


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one optimizer step.

    Attributes:
        normalizer: of the objective, for the whole step.
        teacher: adds its distance, or replaces the objective (``Teacher.alone``); ``None``: the objective alone.
    """

    objective: Objective
    normalizer: float
    teacher: Teacher | None = None

    def of(self, policy: Policy, part: Sequence[Row]) -> PartLoss:
        """Compute the micro-batch's share of the loss. Several threads call this, each with its own policy."""
        if self.teacher is None:
            with span("forward"):
                logp_new = policy.log_probs(part)
            tokens = token_batch(part, logp_new)
            return PartLoss(logp_new, tokens, self.objective.loss(logp_new, tokens, self.normalizer))
        with span("forward"):
            lesson = self.teacher.lesson(policy, part)
        tokens = token_batch(part, lesson.logp_new)
        return PartLoss(lesson.logp_new, tokens, self._with_lesson(self.teacher, lesson, tokens))

    def _with_lesson(self, teacher: Teacher, lesson: Lesson, tokens: TokenBatch) -> LossOutput:
        # 0 * logp makes a policy that is broken in another place than its distance break the loss too.
        loss, metrics = 0.0 * lesson.logp_new.sum(), _measured(lesson)
        if not teacher.alone:
            output = self.objective.loss(lesson.logp_new, tokens, self.normalizer)
            loss, metrics = output.loss, {**output.metrics, **metrics}
        distance = self.objective.average(tokens.sum_by_sequence(lesson.distance), tokens, self.normalizer)
        return LossOutput(loss + teacher.distillation.weight * distance, metrics)


def _measured(lesson: Lesson) -> dict[str, Mean]:
    gap, distance = lesson.logp_new.detach() - lesson.logp_teacher, lesson.distance.detach()
    return {
        "teacher/kl": Mean(float(gap.sum()), gap.numel()),
        "teacher/distance": Mean(float(distance.sum()), distance.numel()),
    }
