"""The extra passes of some optimizers besides the gradient, over the rows of the same update.

    scores        one backward pass of log pi(y | x) for each of a few drawn completions
    statistics    forward and backward of sum log pi(y_t) over all completions, for Kronecker factors
    reevaluation  the update's loss once more, at weights near the current ones

Completions were sampled from the policy, so they are draws from the model: exactly at the anchor, approximately in
later updates of a phase.

Left out: the gradient itself (``updater``), and its use by the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.rank_sync import RankSync
from heliostat.train.update.step_loss import StepLoss


@dataclass(frozen=True, slots=True)
class ExtraPass:
    """One update's rows, ready to be run again.

    Attributes:
        loss: of the update.
        rows: every completion of the update on all ranks; scores are drawn from them, and every rank computes each.
        parts: this rank's micro-batches, with the anchor's log-probabilities filled in.
        rank_sync: keeps ranks in step.
        count: called for every extra forward, for the ledger.
    """

    policy: Policy
    loss: StepLoss
    rows: Sequence[Row]
    parts: Sequence[Sequence[Row]]
    rank_sync: RankSync
    count: Callable[[Sequence[Row], bool], None]

    def step(self, optimizer: torch.optim.Optimizer, seed: Sequence[int]) -> None:
        """Run the pass that the optimizer needs (``BaseOptimizer.extra_pass``), and let it step."""
        _STEPS[getattr(optimizer, "extra_pass", "none")](self, optimizer, seed)

    def _plain(self, optimizer: Any, seed: Sequence[int]) -> None:
        optimizer.step()

    def _with_scores(self, optimizer: Any, seed: Sequence[int]) -> None:
        rows = sorted(self.rows, key=lambda row: (row.prompt.problem.problem_id, row.completion.seed))
        draw = np.random.default_rng(seed)
        for index in draw.choice(len(rows), optimizer.num_scores, replace=len(rows) < optimizer.num_scores):
            with optimizer.score():
                self._log_probs([rows[index]]).sum().backward()  # type: ignore[no-untyped-call]
                self.rank_sync.synchronise()
        optimizer.step()

    def _with_statistics(self, optimizer: Any, seed: Sequence[int]) -> None:
        if optimizer.wants_statistics and not optimizer.empirical:
            # Second moments of a shared prompt would depend on which completions shared it: every row has its own.
            policy = self.policy
            alone = Policy(
                policy.loaded,
                policy.temperature,
                shared_prompt=False,
                gradient_checkpointing=policy.gradient_checkpointing,
            )
            with optimizer.statistics():
                for part in self.parts:
                    self.count(part, False)
                    alone.log_probs(part).sum().backward()  # type: ignore[no-untyped-call]
                self.rank_sync.run_dummy_passes(alone)
        optimizer.step()

    def _with_reevaluation(self, optimizer: Any, seed: Sequence[int]) -> None:
        optimizer.step(again=self._losses)

    def _losses(self) -> Iterator[Tensor]:
        for part in self.parts:
            self.count(part, self.policy.shared_prompt)
            yield self.loss.of(self.policy, part).output.loss * self.rank_sync.scale
        self.rank_sync.run_dummy_passes(self.policy)
        self.rank_sync.synchronise()  # the optimizer has called backward on every loss by now

    def _log_probs(self, part: Sequence[Row]) -> Tensor:
        self.count(part, self.policy.shared_prompt)
        return self.policy.log_probs(part)


_STEPS: dict[str, Callable[[ExtraPass, Any, Sequence[int]], None]] = {
    "none": ExtraPass._plain,
    "scores": ExtraPass._with_scores,
    "statistics": ExtraPass._with_statistics,
    "reevaluation": ExtraPass._with_reevaluation,
}
