"""Supervised steps on worked solutions: the warm start, and ``heliostat sft``.

The loss is the mean negative log-likelihood per solution token, ``-sum_t log pi(y_t | x, y_<t) / num_tokens``, over
exactly the tokens the model would have to sample; prompts are not scored. Of a conversation, every assistant turn is a
row of its own, with what stands before it as its prompt.

Left out: packing several examples into one row, and preference losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, decode, encode_problem, encode_solution, encode_turns
from heliostat.optim import Schedule
from heliostat.rollout import completion_seed
from heliostat.tasks import Task
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row, microbatches
from heliostat.train.logprobs.policy import Policy
from heliostat.train.sft.feedback import Feedback
from heliostat.train.update.rank_sync import Lockstep
from heliostat.train.update.safe_step import GuardedStep
from heliostat.train.update.updater import UpdateCounts
from heliostat.types import Completion, Problem, Prompt, StopReason


def demonstration(loaded: LoadedModel, prompt: Prompt, text: str) -> Row:
    """A prompt with the text that should follow it, as a row to be scored."""
    return _row(prompt, encode_solution(loaded, prompt, text), text)


def _row(prompt: Prompt, ids: tuple[int, ...], text: str) -> Row:
    nothing = np.zeros(len(ids), dtype=np.float32)
    completion = Completion(ids, nothing, nothing, StopReason.EOS, text)
    return Row(group=-1, prompt=prompt, completion=completion, advantage=1.0)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Problems and their tasks' teachers, turned into rows to be imitated."""

    loaded: LoadedModel
    model: ModelSection
    tasks: Mapping[str, Task]
    num_steps: int
    seed: int

    def rows(self, step: int, problems: Sequence[Problem]) -> list[Row]:
        """One row per problem, or per assistant turn of its worked conversation.

        What a teacher draws depends on seed and step alone.

        Raises:
            ValueError: a problem has neither a solution nor an answer, or its conversation does not fit the context.
        """
        rng = np.random.default_rng(completion_seed(self.seed, "demonstrations", step))
        return [row for problem in problems for row in self._rows(problem, rng, step / self.num_steps)]

    def _rows(self, problem: Problem, rng: np.random.Generator, progress: float) -> list[Row]:
        if problem.turns:
            return [self._turn(*taught) for taught in self._taught(problem)]
        text = self.tasks[problem.task].teacher(problem, rng, progress)
        if text is None:
            raise ValueError(f"problem {problem.problem_id} has no solution and no answer to learn from")
        prompt = encode_problem(self.loaded, problem, self.model.chat, self.model.system)
        return [demonstration(self.loaded, prompt, text)]

    def _taught(self, problem: Problem) -> Iterator[tuple[Prompt, tuple[int, ...]]]:
        return encode_turns(self.loaded, problem, self.model.chat, self.model.system)

    def _turn(self, prompt: Prompt, ids: tuple[int, ...]) -> Row:
        length = len(prompt.token_ids) + len(ids)
        if length > self.loaded.context_length:
            raise ValueError(
                f"{prompt.problem.described}: a conversation of {length} tokens, but the context of model "
                f"'{self.loaded.name}' holds {self.loaded.context_length}"
            )
        return _row(prompt, ids, decode(self.loaded, ids))


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

    def step(self, index: int, rows: Sequence[Row], feedback: Feedback) -> dict[str, float]:
        """One step on ``rows``; returns the loss per token. A step that is not finite is skipped and counted."""
        lr = self.schedule.set_lr(self.guarded.optimizer, index, feedback.lr_scale)
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
        if (held := feedback.loss()) is not None:  # every rank has the whole of it
            self.counts.add(feedback.rows if self.runtime.is_main else [], shared_prompt=False)
            held.backward()  # type: ignore[no-untyped-call]
        lockstep.synchronise()
        total = self.runtime.sum({"loss": here})["loss"]
        norm = self.guarded.apply(total)
        return {"loss/sft": total, "optim/lr": lr} | ({} if norm is None else {"optim/grad_norm": norm})
