"""Repeat recorded episodes: once more, beside a sibling, with other seeds, and on other problems.

Left out: conclusions (``findings``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.tasks.environment_audit.episodes import Played, Start, play
from heliostat.tasks.environment_audit.policies import repeat_actions
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.environments.worlds import seed_of
from heliostat.types import Problem

_NUM_CONFIRMED = 4  # repetitions alone before a difference is put down to siblings


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference between two episodes with the same actions.

    Attributes:
        turn: from 1; 0: the first observation.
    """

    problem: Problem
    turn: int

    def format(self) -> str:
        """Format the problem and the place."""
        place = f"the answer to turn {self.turn}" if self.turn else "the first observation"
        return f"{place} of {self.problem.described}"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The results of repeating episodes.

    Attributes:
        repeated: difference when an episode is repeated, with its seed and actions, in another instance.
        sibling: difference when others are stepped beside it, although each has random states of its own.
        unseeded: difference when it is repeated and the global random states are not seeded for it.
        unguarded: difference when others are stepped beside it and share the global random states.
        num_seeds: other seeds that were tried.
        seed_matters: whether another seed changed an observation or a reward; ``None``: not known.
        problem_matters: whether another problem did, with its own seed; ``None``: not known.
        prompts_differ: whether the problems have different prompts.
    """

    repeated: Difference | None = None
    sibling: Difference | None = None
    unseeded: Difference | None = None
    unguarded: Difference | None = None
    num_seeds: int = 0
    seed_matters: bool | None = None
    problem_matters: bool | None = None
    prompts_differ: bool = False


def choose(played: Sequence[Played], num_problems: int) -> list[Played]:
    """Return the episodes on the first problems, without those that failed or were cut."""
    usable = [one for one in played if one.actions and not (one.is_cut or one.failure)]
    known = list(dict.fromkeys(one.start.problem.problem_id for one in usable))[:num_problems]
    return [one for one in usable if one.start.problem.problem_id in known]


def compare(
    pool: EnvironmentPool, spec: EnvironmentSpec, recorded: Sequence[Played], num_seeds: int, deadline: float
) -> Comparisons:
    """Repeat ``recorded`` in every way, as far as the deadline allows.

    Args:
        pool: an open pool of the environment; further ones are opened for siblings.
    """
    if not recorded:
        return Comparisons()
    problems = {one.start.problem.problem_id: one.start.problem for one in recorded}
    shifted = [(one, _again(one, seed=_seed(one) + shift)) for shift in range(1, num_seeds + 1) for one in recorded]
    moved = [
        (one, _again(one, problem=other))
        for one in recorded
        for other in problems.values()
        if other is not one.start.problem
    ]
    seed_matters, problem_matters = _differ(pool, shifted, deadline), _differ(pool, moved, deadline)
    repeated, sibling = _in_one_process(spec, recorded, deadline, isolates_random=True)
    unseeded = unguarded = None
    if not repeated and not sibling:
        unseeded, unguarded = _in_one_process(spec, recorded, deadline, isolates_random=False)
    return Comparisons(
        repeated=repeated,
        sibling=sibling,
        unseeded=unseeded,
        unguarded=unguarded,
        num_seeds=num_seeds,
        seed_matters=seed_matters,
        problem_matters=problem_matters,
        prompts_differ=len({str(problem.prompt) for problem in problems.values()}) > 1,
    )


def _in_one_process(
    spec: EnvironmentSpec, recorded: Sequence[Played], deadline: float, *, isolates_random: bool
) -> tuple[Difference | None, Difference | None]:
    """Return the first difference of a repetition, and the first one that instances in the same process cause.

    An episode is played alone, then alone again, then stepped in alternation with a sibling and another's episode.
    """
    repeated = None
    with EnvironmentPool(dataclasses.replace(spec, num_workers=1), isolates_random=isolates_random) as pool:
        for one, other in zip(recorded, [*recorded[1:], recorded[0]], strict=True):
            alone = play(pool, [_again(one)], deadline)
            if found := _unstable(pool, one, alone, 1, deadline):
                return found, None
            beside = play(pool, [_again(one), _again(one), _again(other)], deadline)
            if disturbed := _first_difference(alone * 2, beside[:2]):  # or by chance, the first time
                found = _unstable(pool, one, alone, _NUM_CONFIRMED, deadline)
                return (found, None) if found else (None, disturbed)
            repeated = repeated or _first_difference([one], alone)  # it may have been disturbed, which comes first
    return repeated, None


def _unstable(
    pool: EnvironmentPool, one: Played, alone: Sequence[Played], num: int, deadline: float
) -> Difference | None:
    """Return the first difference between an episode and ``num`` repetitions of it, each played alone."""
    repetitions = (play(pool, [_again(one)], deadline) for _ in range(num))
    return next(filter(None, (_first_difference(alone, again) for again in repetitions)), None)


def _again(one: Played, problem: Problem | None = None, seed: int | None = None) -> Start:
    name = one.start.policy[0]
    return Start(problem or one.start.problem, (name, repeat_actions(one.actions)), len(one.actions), seed)


def _seed(one: Played) -> int:
    return seed_of(one.start.problem) if one.start.seed is None else one.start.seed


def _differ(pool: EnvironmentPool, pairs: Sequence[tuple[Played, Start]], deadline: float) -> bool | None:
    """Return whether any repetition differs from its record; ``None`` if none does and some were not finished."""
    repeated = play(pool, [start for _, start in pairs], deadline)
    if _first_difference([one for one, _ in pairs], repeated) is not None:
        return True
    return False if pairs and not any(one.is_cut for one in repeated) else None


def _first_difference(before: Sequence[Played], after: Sequence[Played]) -> Difference | None:
    for one, other in zip(before, after, strict=True):
        if one.is_cut or other.is_cut or one.transcript == other.transcript:
            continue
        pairs = zip(one.transcript, other.transcript, strict=False)
        turn = next((turn for turn, (a, b) in enumerate(pairs) if a != b), min(len(one.steps), len(other.steps)) + 1)
        return Difference(one.start.problem, turn)
    return None
