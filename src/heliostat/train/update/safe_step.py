"""An optimizer step that skips non-finite losses and gradients.

Left out: their cause; the run's folder has the last good checkpoint and the metrics up to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliostat.optim.distributed.sharded_tensors import full_tensor
from heliostat.train.distributed.ranks import readable_dist_errors


class TrainingDiverged(RuntimeError):
    """Too many consecutive updates had a non-finite loss or gradient."""


@dataclass(slots=True)
class SafeStep:
    """An optimizer's step with gradient clipping and a check for non-finite values; bad steps are skipped and counted.

    Attributes:
        num_bad: skipped steps so far.
        num_bad_in_a_row: skipped steps since the last good one.
    """

    optimizer: torch.optim.Optimizer
    max_grad_norm: float
    max_bad_steps: int
    num_bad: int = 0
    num_bad_in_a_row: int = 0

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def apply(self, loss: float, step: Callable[[], Any] | None = None) -> float | None:
        """Take the step whose gradients are in place.

        Args:
            step: takes the step with the passes that some optimizers need; defaults to the optimizer's own step.

        Returns:
            The gradient norm before clipping, or ``None`` where the step was skipped.

        Raises:
            TrainingDiverged: this is skipped step ``max_bad_steps`` in a row.
        """
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)))
        if np.isfinite(loss) and np.isfinite(norm) and self._took(norm, step or self.optimizer.step):
            self.num_bad_in_a_row = 0
            return norm
        self.optimizer.zero_grad(set_to_none=True)
        self.num_bad += 1
        self.num_bad_in_a_row += 1
        if self.num_bad_in_a_row >= self.max_bad_steps:
            raise TrainingDiverged(
                f"{self.num_bad_in_a_row} updates in a row had a non-finite loss or gradient (loss {loss}, gradient "
                f"norm {norm}); the last good checkpoint is kept, and a lower learning rate usually helps"
            )
        return None

    def _took(self, norm: float, step: Callable[[], Any]) -> bool:
        """Let the optimizer step, and return whether it did; some skip on their own if extra inputs are not finite."""
        before = getattr(self.optimizer, "num_skipped", 0)
        if norm > 0:  # without a gradient Adam would still move along its momentum
            with readable_dist_errors():
                step()
        return bool(getattr(self.optimizer, "num_skipped", 0) == before)
