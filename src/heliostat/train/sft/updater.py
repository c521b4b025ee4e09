"""Supervised steps on worked solutions: the warm start, and ``heliostat sft``.

The loss is the mean negative log-likelihood per solution token, ``-sum_t log pi(y_t | x, y_<t) / num_tokens``, over
exactly the tokens the model would have to sample; prompts are not scored. In a conversation, every assistant turn is a
row of its own, and the preceding messages are its prompt.

Left out: packing several examples into one row, and preference losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from heliostat.optim import Schedule
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.sft.feedback import Feedback
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.gradient_workers import GradientWorkers
from heliostat.train.update.rank_sync import RankSync
from heliostat.train.update.safe_step import SafeStep


@dataclass(slots=True)
class SupervisedUpdater:
    """The updater of maximum likelihood on rows, one optimizer step at a time."""

    policy: Policy
    safe_step: SafeStep
    schedule: Schedule
    runtime: Runtime
    tokens_per_microbatch: int
    num_workers: int = 0
    counts: UpdateCounts = field(default_factory=UpdateCounts)
    workers: GradientWorkers = field(init=False)

    def __post_init__(self) -> None:
        self.workers = GradientWorkers(self.num_workers)

    def take_counts(self) -> UpdateCounts:
        """Return the token counts since the last call, and reset them."""
        counts, self.counts = self.counts, UpdateCounts()
        return counts.over_ranks(self.runtime)

    def step(self, index: int, rows: Sequence[Row], feedback: Feedback) -> dict[str, float]:
        """Take one step on ``rows``, and return its metrics. A non-finite step is skipped and counted."""
        lr = self.schedule.set_lr(self.safe_step.optimizer, index, feedback.lr_scale)
        self.safe_step.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(row.num_tokens for row in rows)
        numbered = [dataclasses.replace(row, group=number) for number, row in enumerate(rows)]
        mine = self.runtime.shard_balanced(numbered, [row.num_tokens for row in numbered])
        parts = self.workers.split(self.policy, mine, self.tokens_per_microbatch)
        rank_sync = RankSync.for_update(self.runtime, self.safe_step.parameters, numbered, len(parts))
        losses = self.workers.run(self.policy, parts, partial(_backward, num_tokens, rank_sync.scale))
        for part in parts:
            self.counts.add(part, shared_prompt=False)
        rank_sync.run_dummy_passes(self.policy)
        if (feedback_loss := feedback.loss()) is not None:  # each rank computes all of it
            self.counts.add(feedback.rows if self.runtime.is_main else [], shared_prompt=False)
            feedback_loss.backward()  # type: ignore[no-untyped-call]
        rank_sync.synchronise()
        total = self.runtime.sum({"loss": sum(losses)})["loss"]
        norm = self.safe_step.apply(total)
        return {"loss/sft": total, "optim/lr": lr} | ({} if norm is None else {"optim/grad_norm": norm})


def _backward(num_tokens: int, scale: int, policy: Policy, part: Sequence[Row]) -> float:
    """Accumulate the part's gradient in the policy's model, and return its share of the loss."""
    loss = -policy.log_probs(part).sum() / num_tokens
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())
