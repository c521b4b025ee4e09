"""Play episodes of an environment side by side, one turn of each at a time.

Left out: the policies (``policies``), and conclusions (``audit``).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from heliostat.tasks.environment_audit.policies import Policy, Situation, text_of
from heliostat.tasks.environments.contract import EnvironmentFailed, Observation, Step
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.types import Problem


@dataclass(frozen=True, slots=True)
class Start:
    """An episode to play.

    Attributes:
        policy: its name in the report, and the function itself.
        num_turns: turns at most.
        seed: of the episode; ``None``: the problem's own.
    """

    problem: Problem
    policy: tuple[str, Policy]
    num_turns: int
    seed: int | None = None


@dataclass
class Played:
    """An episode that was played.

    Attributes:
        first: the first observation; ``None``: the episode failed before it.
        failure: how the environment failed; empty if it did not.
        is_cut: whether time was up before it ended.
    """

    start: Start
    first: Observation | None = None
    actions: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    failure: str = ""
    is_cut: bool = False

    @property
    def is_over(self) -> bool:
        """Whether no further turn can be taken."""
        done = bool(self.steps) and self.steps[-1].done
        return done or bool(self.failure) or self.is_cut or len(self.steps) >= self.start.num_turns

    @property
    def total(self) -> float:
        """The sum of the turns' rewards."""
        return math.fsum(step.reward or 0.0 for step in self.steps)

    @property
    def is_scored(self) -> bool:
        """Whether any turn has a reward."""
        return any(step.reward is not None for step in self.steps)

    @property
    def success(self) -> bool:
        """Whether the episode succeeded: as the environment says, or with a return of at least 1."""
        said = [step.info["success"] for step in self.steps if "success" in step.info]
        return bool(said[-1]) if said else self.total >= 1.0

    @property
    def transcript(self) -> tuple[Any, ...]:
        """All that the episode showed."""
        return (self.first, *((step.observation, step.reward, step.done) for step in self.steps), bool(self.failure))


def play(
    pool: EnvironmentPool, starts: Sequence[Start], deadline: float = math.inf, tools: Sequence[Any] = ()
) -> list[Played]:
    """Play all episodes to their ends, or until the deadline, one turn of each at a time.

    A pool of one process thereby steps siblings in alternation.

    Args:
        deadline: of ``time.monotonic``.
        tools: JSON schemas of the environment's tools.
    """
    episodes = []
    for number, start in enumerate(starts):
        row, seed = row_of(start.problem), seed_of(start.problem) if start.seed is None else start.seed
        row |= {"seed": seed} if "seed" in row else {}
        episode = pool.open(row, seed, start.problem.described)
        rng = random.Random(f"{number} {start.problem.problem_id}")
        situation = Situation(episode, [start.problem.question], start.num_turns, tools, rng)
        episodes.append((Played(start), situation))
    try:
        for played, situation in episodes:
            with _noting(played):
                played.first = situation.episode.first.result(_left(deadline))
                situation.texts.append(text_of(played.first))
        while going := [pair for pair in episodes if not pair[0].is_over]:
            _take_turn(going, deadline)
    finally:
        for _, situation in episodes:
            situation.episode.close()
    return [played for played, _ in episodes]


def _take_turn(going: Sequence[tuple[Played, Situation]], deadline: float) -> None:
    """Let every episode take one turn; their calls wait for each other only within a process."""
    chosen = [(played, situation, played.start.policy[1](situation)) for played, situation in going]
    pending: list[tuple[Played, Situation, Future[Step]]] = []
    for played, situation, choice in chosen:
        with _noting(played):
            action = choice.result(_left(deadline)) if isinstance(choice, Future) else choice
            played.actions.append(action)
            pending.append((played, situation, situation.episode.step(action)))
    for played, situation, future in pending:
        with _noting(played):
            step = future.result(_left(deadline))
            played.steps.append(step)
            situation.texts.append(text_of(step.observation))
            situation.turn += 1


@contextmanager
def _noting(played: Played) -> Iterator[None]:
    """Note an environment's failure, or that time was up, in the episode's record."""
    try:
        yield
    except EnvironmentFailed as error:
        played.failure = str(error)
    except TimeoutError:
        played.is_cut = True


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
