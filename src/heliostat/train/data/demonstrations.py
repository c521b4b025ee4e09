"""Worked solutions and conversations as rows for supervised steps.

Left out: the supervised update (``sft.updater``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, decode, encode_problem, encode_solution, encode_turns
from heliostat.rollout import completion_seed
from heliostat.tasks import Task
from heliostat.train.logprobs.packing import Row
from heliostat.types import Completion, Problem, Prompt, StopReason


def demonstration(loaded: LoadedModel, prompt: Prompt, text: str) -> Row:
    """Build the row that trains ``text`` as the completion of ``prompt``."""
    return _row(prompt, encode_solution(loaded, prompt, text), text)


def _row(prompt: Prompt, ids: tuple[int, ...], text: str) -> Row:
    zeros = np.zeros(len(ids), dtype=np.float32)
    completion = Completion(ids, zeros, zeros, StopReason.EOS, text)
    return Row(group=-1, prompt=prompt, completion=completion, advantage=1.0)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """The supervised rows of a run's problems, by its tasks' teachers."""

    loaded: LoadedModel
    model: ModelSection
    tasks: Mapping[str, Task]
    num_steps: int
    seed: int

    def rows(self, step: int, problems: Sequence[Problem]) -> list[Row]:
        """Build one row per problem, or per assistant turn of its worked conversation.

        Random choices of a teacher depend on the seed and the step alone.

        Raises:
            ValueError: a problem has neither a solution nor an answer, or its conversation does not fit the context.
        """
        rng = np.random.default_rng(completion_seed(self.seed, "demonstrations", step))
        return [row for problem in problems for row in self._rows(problem, rng, step / self.num_steps)]

    def _rows(self, problem: Problem, rng: np.random.Generator, progress: float) -> list[Row]:
        if problem.turns:
            return [self._turn(*turn) for turn in self._turns(problem)]
        text = self.tasks[problem.task].teacher(problem, rng, progress)
        if text is None:
            raise ValueError(f"problem {problem.problem_id} has no solution and no answer to learn from")
        prompt = encode_problem(self.loaded, problem, self.model.chat, self.model.system)
        return [demonstration(self.loaded, prompt, text)]

    def _turns(self, problem: Problem) -> Iterator[tuple[Prompt, tuple[int, ...]]]:
        return encode_turns(self.loaded, problem, self.model.chat, self.model.system)

    def _turn(self, prompt: Prompt, ids: tuple[int, ...]) -> Row:
        length = len(prompt.token_ids) + len(ids)
        if length > self.loaded.context_length:
            raise ValueError(
                f"{prompt.problem.described}: a conversation of {length} tokens, but the context of model "
                f"'{self.loaded.name}' holds {self.loaded.context_length}"
            )
        return _row(prompt, ids, decode(self.loaded, ids))
