"""Supervised steps on worked solutions: the warm start, and ``heliostat sft``.

The loss is the mean negative log-likelihood per solution token, ``-sum_t log pi(y_t | x, y_<t) / num_tokens``, over
exactly the tokens the model would have to sample; prompts are not scored.

Left out: packing several examples into one row, and preference losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from heliostat.models import LoadedModel, encode_problem, encode_solution
from heliostat.optim import Schedule
from heliostat.train.guarded_step import GuardedStep
from heliostat.train.lockstep import Lockstep
from heliostat.train.packing import Row, microbatches
from heliostat.train.policy import Policy
from heliostat.train.runtime import Runtime
from heliostat.train.update import UpdateCounts
from heliostat.types import Completion, Problem, StopReason


def demonstration(loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"], system: str) -> Row:
    """A problem's worked solution as a row to be scored.

    Raises:
        ValueError: the problem has neither a solution nor an answer.
    """
    solution = problem.solution if problem.solution is not None else problem.answer
    if solution is None:
        raise ValueError(f"problem {problem.problem_id} has no solution and no answer to learn from")
    prompt = encode_problem(loaded, problem, chat, system)
    ids = encode_solution(loaded, prompt, solution)
    nothing = np.zeros(len(ids), dtype=np.float32)
    completion = Completion(ids, nothing, nothing, StopReason.EOS, solution)
    return Row(group=-1, prompt=prompt, completion=completion, advantage=1.0)


@dataclass(slots=True)
class SupervisedUpdater:
    """Maximum likelihood on rows, one optimizer step at a time."""

    policy: Policy
    guarded: GuardedStep
    schedule: Schedule
    runtime: Runtime
    tokens_per_microbatch: int
    counts: UpdateCounts = field(default_factory=UpdateCounts)

    def take_counts(self) -> UpdateCounts:
        """What was computed since the last call."""
        counts, self.counts = self.counts, UpdateCounts()
        return counts.over_ranks(self.runtime)

    def step(self, index: int, rows: Sequence[Row]) -> dict[str, float]:
        """One step on ``rows``; returns the loss per token. A step that is not finite is skipped and counted."""
        lr = self.schedule.set_lr(self.guarded.optimizer, index)
        self.guarded.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(row.num_tokens for row in rows)
        numbered = [dataclasses.replace(row, group=number) for number, row in enumerate(rows)]
        mine = self.runtime.split(numbered, [row.num_tokens for row in numbered])
        parts = microbatches(mine, self.tokens_per_microbatch, self.policy.padded_tokens)
        lockstep = Lockstep.over(self.runtime, self.guarded.parameters, numbered, len(parts))
        here = 0.0
        for part in parts:
            self.counts.add(part, shared_prompt=False)
            loss = -self.policy.log_probs(part).sum() / num_tokens
            (loss * lockstep.scale).backward()  # type: ignore[no-untyped-call]
            here += float(loss.detach())
        lockstep.fill(self.policy)
        lockstep.synchronise()
        total = self.runtime.sum({"loss": here})["loss"]
        norm = self.guarded.apply(total)
        return {"loss/sft": total, "optim/lr": lr} | ({} if norm is None else {"optim/grad_norm": norm})
