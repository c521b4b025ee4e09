r"""Control of a statistic of the model's own text during supervised fine-tuning.

    measured   S = mean_i s(y_i),   y_i sampled from the model at T = 1 for prompts of the batch
    loss       w (S - S*)^2 is added to the likelihood loss, which moves s itself, up or down
    lr, temperature, mix        a controller adjusts one training setting while S is below S*

Every statistic is high for varied text, so that a controller has one direction. Without a target in the recipe the
first measurement is the target. This is a reconstruction of the feedback framework of "Stability as a Liability": the
paper's body, with its statistics and control laws, was not available.

Left out: statistics over several texts, and feedback during training on rewards (``train.guard.run_guard``).

References: Meng et al. 2026, arXiv 2601.18588 (reconstruction); Williams 1992, Machine Learning 8:229 (the gradient).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.config import FeedbackSection
from heliostat.monitors.controllers import ProportionalIntegral
from heliostat.monitors.repetition import distinct_share, repeated_share
from heliostat.rollout import Engine, SampleRequest, SamplingSettings, completion_seed
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Completion, Group, Problem, Prompt

LEAST_LR = 0.1
LEAST_TEMPERATURE = 0.7
"""Share of the learning rate, and temperature of the likelihood, at a controller's full output."""


def _entropy(completion: Completion) -> float:
    return float(completion.entropy.mean())


def _unrepeated(completion: Completion) -> float:
    return 1.0 - (repeated_share(completion.sampled_ids, 4) or 0.0)


def _distinct(completion: Completion) -> float:
    return distinct_share([completion.sampled_ids], 1) or 0.0


STATISTICS: dict[str, Callable[[Completion], float]] = {
    "entropy": _entropy,
    "unrepeated": _unrepeated,
    "distinct": _distinct,
}
"""Statistics of one text: mean token entropy in nats, 1 - rep-4, and distinct tokens over tokens."""


def statistic_loss(logp: Float[Tensor, " text"], statistic: Float[Tensor, " text"], target: float) -> Float[Tensor, ""]:
    r"""Compute a scalar whose gradient estimates that of ``(E s(y) - S*)^2`` from sampled texts.

        2 (mean s - S*) mean_i [ (s_i - b_i) log p(y_i) + s_i ],      b_i = mean of the other texts' s

    Args:
        logp: log-probability of each whole text, differentiable.
        statistic: ``s``; differentiable where the weights act on it directly, constant where only the text does.

    Raises:
        ValueError: fewer than two texts, which leave no baseline.

    **Limits** ``mean s = S*``, or all ``s_i`` equal and constant: gradient 0. The bracket is unbiased; its product with
    ``mean s - S*`` of the same texts is biased by their covariance, which falls as one over the number of texts.
    """
    num = statistic.shape[0]
    if num < 2:
        raise ValueError(f"the loss of a statistic compares texts, so that it needs at least 2 of them, got {num}")
    values = statistic.detach()
    baseline = (values.sum() - values) / (num - 1)
    surrogate = ((values - baseline) * logp + statistic).mean()
    return 2.0 * (values.mean() - target) * surrogate


@dataclass(slots=True)
class Feedback:
    """The feedback loop of one run's supervised steps: statistic, target and actuator.

    Attributes:
        prompt: encodes a problem.
        extra: problems that the actuator ``mix`` adds.
        target: target of the statistic; ``None`` before the first measurement.
        rows: the model's own texts, if the current step measures them for the loss.
    """

    section: FeedbackSection
    engine: Engine
    policy: Policy
    prompt: Callable[[Problem], Prompt]
    seed: int
    extra: Sequence[Problem] = ()
    target: float | None = None
    controller: ProportionalIntegral = field(default_factory=lambda: ProportionalIntegral(deadband=0.02))
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target = self.section.target or None

    def measure(self, index: int, problems: Sequence[Problem]) -> dict[str, float]:
        """Measure own text at supervised step ``index`` if due, set the actuator, and return the metrics."""
        section, self.rows = self.section, []
        if section.statistic == "none" or index < section.start or (index - section.start) % section.every:
            return {}
        prompts = [self.prompt(problems[i % len(problems)]) for i in range(section.num_texts)]
        seed = completion_seed(self.seed, "feedback", index)
        groups = self.engine.sample(
            SampleRequest(prompts, 1, SamplingSettings(temperature=1.0), seed=seed, policy_step=index)
        )
        measured = sum(STATISTICS[section.statistic](group.completions[0]) for group in groups) / len(groups)
        self.target = measured if self.target is None else self.target
        metrics = {"feedback/statistic": measured, "feedback/target": self.target}
        if section.actuator == "loss":
            self.rows = [_row(number, group) for number, group in enumerate(groups)]
            return metrics
        output = self.controller.update(measured, max(self.target, 1e-6))
        if section.actuator == "temperature":
            self.policy.temperature = 1.0 - (1.0 - LEAST_TEMPERATURE) * output
        return metrics | {"feedback/output": output}

    @property
    def lr_scale(self) -> float:
        """The factor on the step's learning rate."""
        return 1.0 - (1.0 - LEAST_LR) * self.controller.output if self.section.actuator == "lr" else 1.0

    def mixed(self, index: int, problems: Sequence[Problem]) -> list[Problem]:
        """Replace the controller's share of the batch by extra problems."""
        if self.section.actuator != "mix" or not self.controller.output:
            return list(problems)
        num = round(self.controller.output * len(problems))
        first = index * len(problems)
        return [*problems[num:], *(self.extra[(first + i) % len(self.extra)] for i in range(num))]

    def loss(self) -> Tensor | None:
        """Compute the auxiliary loss of this step; ``None`` without one."""
        if not self.rows:
            return None
        assert self.target is not None
        lengths = [row.num_tokens for row in self.rows]
        logp = torch.stack([piece.sum() for piece in torch.split(self.policy.log_probs(self.rows), lengths)])
        if self.section.statistic == "entropy":  # mean surprisal equals mean entropy in expectation, and has a gradient
            statistic = -logp / torch.tensor(lengths, dtype=logp.dtype, device=logp.device)
        else:
            measure = STATISTICS[self.section.statistic]
            statistic = torch.tensor(
                [measure(row.completion) for row in self.rows], dtype=logp.dtype, device=logp.device
            )
        return self.section.weight * statistic_loss(logp, statistic, self.target)

    def state_dict(self) -> dict[str, Any]:
        """Return the target and the controller's state, for a checkpoint."""
        return {"target": self.target, "controller": self.controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the target and the controller's state from a checkpoint."""
        self.target = state["target"]
        self.controller.load_state_dict(state["controller"])
        if self.section.actuator == "temperature":
            self.policy.temperature = 1.0 - (1.0 - LEAST_TEMPERATURE) * self.controller.output


def _row(number: int, group: Group) -> Row:
    return Row(number, group.prompt, group.completions[0], 0.0, None)
