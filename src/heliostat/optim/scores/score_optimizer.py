"""The base class of optimizers that take score functions: they are collected here until a step uses them.

The score function of a sample is the gradient of its log-probability under the model, ``grad log p(y | x)``; "score"
for short. In post-training a sample is a whole sampled completion, so a score is that of a sequence, not of a token.

Left out: the choice of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor, nn

from heliostat.optim.base.optimizer import BaseOptimizer
from heliostat.optim.base.own_precision import ExtraPass
from heliostat.optim.base.settings import check_settings
from heliostat.optim.distributed.replicas import ProcessGroup, without_gradient_averaging
from heliostat.optim.scores.score_buffer import ScoreBuffer


class ScoreOptimizer(BaseOptimizer):
    """Base of optimizers whose step takes the scores of a few samples in addition to the gradient.

    Attributes:
        num_scores: scores that a step takes on this process.
    """

    extra_pass: ClassVar[ExtraPass] = "scores"

    def __init__(self, params: Any, defaults: dict[str, Any], num_scores: int, process_group: ProcessGroup) -> None:
        check_settings(defaults)
        self.num_scores, self.process_group = num_scores, process_group
        self._scores = ScoreBuffer()
        super().__init__(params.parameters() if isinstance(params, nn.Module) else params, defaults)

    def score(self) -> AbstractContextManager[None]:
        """Turn the backward pass inside into one score; gradients are as before when the context ends.

        Differentiate the log-probability of one sample drawn from the model. The sign of a score does not matter, its
        scale does.

        Raises:
            RuntimeError: nothing was differentiated inside.
        """
        return self._scores.backward_inside(self.parameters())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and scores that no step has taken."""
        super().zero_grad(set_to_none)
        self._scores.clear()

    def run_score_closure(self, score_closure: Callable[[], Tensor] | None) -> None:
        """Run a step's ``score_closure``, where there is one, and make a score of each log-probability it returns."""
        if score_closure is not None:
            with self.callers_mode(), without_gradient_averaging():
                self._scores.differentiate(score_closure(), self.parameters())
