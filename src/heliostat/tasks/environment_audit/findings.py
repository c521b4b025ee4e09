"""Findings of an audit of an environment, as sentences.

Left out: playing episodes (``episodes``) and comparing them (``comparisons``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from heliostat.tasks.environment_audit.comparisons import Comparisons
from heliostat.tasks.environment_audit.episodes import Played

_GUESSABLE = 0.2  # a policy that solves nothing may succeed on this share of problems
_PARTIAL = 0.1  # of the oracle's return: less than this for no success is noise, more is a way to earn


class EnvironmentFindingKind(StrEnum):
    """Kinds of findings, from worst to mildest; the last five are notes."""

    FREE_SUCCESS = "success for nothing"  # a policy that solves nothing succeeds too often
    FREE_RETURN = "return for nothing"  # it earns a return without success
    ORACLE_FAILS = "oracle fails"  # right actions do not succeed
    FAILED = "environment failed"  # an exception, a timeout, a crash
    NOT_REPEATABLE = "not repeatable"  # same problem, seed and actions, another episode
    SIBLINGS = "siblings disturb each other"  # through state that instances share
    ONE_WORLD = "same world for all"  # neither the problem nor the seed changes anything
    GLOBAL_RANDOM = "global random state"  # siblings would disturb each other if it were not kept apart
    SEED_IGNORED = "ignores the seed"
    CHANCE = "chance"  # random play succeeds often
    NO_REWARD = "no reward"  # verifiers judge the episodes instead
    NO_ORACLE = "no oracle"

    @property
    def hackable(self) -> bool:
        return self in (self.FREE_SUCCESS, self.FREE_RETURN)

    @property
    def harmless(self) -> bool:
        notes = (self.GLOBAL_RANDOM, self.SEED_IGNORED, self.CHANCE, self.NO_REWARD, self.NO_ORACLE)
        return self in notes


@dataclass(frozen=True, slots=True)
class EnvironmentFinding:
    """One result of the audit, as a sentence."""

    kind: EnvironmentFindingKind
    sentence: str


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The episodes of one policy, averaged over problems.

    Attributes:
        success: share of episodes that succeeded.
        mean_return: mean of the returns, which are sums over turns.
        unearned: mean of the returns without success.
        mean_turns: turns of an episode.
        num_failures: episodes in which the environment failed; they are in none of the means.
    """

    name: str
    num_episodes: int
    success: float
    mean_return: float
    unearned: float
    mean_turns: float
    num_failures: int
    first_failure: str = ""

    @property
    def num_successes(self) -> int:
        return round(self.success * self.num_episodes)


def result_of(name: str, played: Sequence[Played]) -> PolicyResult:
    """Average the episodes of one policy."""
    failures = [one.failure for one in played if one.failure]
    scored = [one for one in played if not one.failure]
    unearned = [one.total for one in scored if not one.success]
    count = max(1, len(scored))
    return PolicyResult(
        name=name,
        num_episodes=len(scored),
        success=sum(one.success for one in scored) / count,
        mean_return=math.fsum(one.total for one in scored) / count,
        unearned=math.fsum(unearned) / max(1, len(unearned)),
        mean_turns=sum(len(one.steps) for one in scored) / count,
        num_failures=len(failures),
        first_failure=failures[0] if failures else "",
    )


def find(
    results: Sequence[PolicyResult], played: Sequence[Played], comparisons: Comparisons, *, has_oracle: bool
) -> Iterator[EnvironmentFinding]:
    """Yield the findings, from worst to mildest."""
    by_name = {result.name: result for result in results}
    oracle, chance = by_name.get("oracle"), by_name.get("random")
    worthless = [result for result in results if result.name not in ("oracle", "random")]
    yield from _unearned(worthless, oracle)
    if oracle is not None and oracle.num_successes < oracle.num_episodes:
        failed = oracle.num_episodes - oracle.num_successes
        yield EnvironmentFinding(
            EnvironmentFindingKind.ORACLE_FAILS,
            f"the environment's own right actions do not succeed on {failed} of {oracle.num_episodes} problems "
            f"within the turns of an episode (mean return {oracle.mean_return:.3g})",
        )
    yield from _failures(results)
    yield from _worlds(comparisons)
    if chance is not None and chance.success > _GUESSABLE:
        yield EnvironmentFinding(
            EnvironmentFindingKind.CHANCE, f"random play succeeds on {chance.success:.0%} of problems"
        )
    if played and not any(one.is_scored for one in played):
        yield EnvironmentFinding(
            EnvironmentFindingKind.NO_REWARD,
            "no turn has a reward, so the task's verifiers judge the last turn of an episode",
        )
    if not has_oracle:
        yield EnvironmentFinding(
            EnvironmentFindingKind.NO_ORACLE, "it has no oracle(), so right actions were not tried"
        )


def _unearned(worthless: Sequence[PolicyResult], oracle: PolicyResult | None) -> Iterator[EnvironmentFinding]:
    paid = [one for one in worthless if one.success > _GUESSABLE and one.num_successes >= min(2, one.num_episodes)]
    if paid:
        best = max(paid, key=lambda one: one.success)
        others = f", and {len(paid) - 1} more policies that solve nothing do too" if paid[1:] else ""
        yield EnvironmentFinding(
            EnvironmentFindingKind.FREE_SUCCESS,
            f"[{best.name}] succeeds on {best.success:.0%} of problems{others}",
        )
    most = max(worthless, key=lambda one: one.unearned, default=None)
    full = oracle.mean_return if oracle is not None and oracle.mean_return > 0 else 1.0
    if most is not None and most.unearned >= _PARTIAL * full:
        compared = "the oracle's" if oracle is not None and oracle.mean_return > 0 else "a success's"
        yield EnvironmentFinding(
            EnvironmentFindingKind.FREE_RETURN,
            f"[{most.name}] earns a mean return of {most.unearned:.3g} without success; {compared} is {full:.3g}",
        )


def _failures(results: Sequence[PolicyResult]) -> Iterator[EnvironmentFinding]:
    failed = [result for result in results if result.num_failures]
    if failed:
        count = sum(result.num_failures for result in failed)
        total = sum(result.num_episodes + result.num_failures for result in results)
        yield EnvironmentFinding(
            EnvironmentFindingKind.FAILED,
            f"{count} of {total} episodes, first with [{failed[0].name}]: {failed[0].first_failure}",
        )


def _worlds(comparisons: Comparisons) -> Iterator[EnvironmentFinding]:
    if comparisons.repeated is not None:
        yield EnvironmentFinding(
            EnvironmentFindingKind.NOT_REPEATABLE,
            f"{comparisons.repeated.format()} differs when the episode is repeated with its seed and its actions",
        )
    if comparisons.sibling is not None:
        yield EnvironmentFinding(
            EnvironmentFindingKind.SIBLINGS,
            f"{comparisons.sibling.format()} changes when others are stepped beside it, though their random states "
            "are kept apart: instances share something else, like a variable of the class",
        )
    elif comparisons.unseeded is not None:
        yield EnvironmentFinding(
            EnvironmentFindingKind.SEED_IGNORED,
            f"{comparisons.unseeded.format()} differs between two episodes unless the global generators of python and "
            "numpy are seeded for it, as the environment pool does",
        )
    elif comparisons.unguarded is not None:
        yield EnvironmentFinding(
            EnvironmentFindingKind.GLOBAL_RANDOM,
            f"{comparisons.unguarded.format()} changes when others are stepped beside it and share the global "
            "generators of python and numpy; the environment pool keeps these apart",
        )
    if comparisons.seed_matters is False:
        tried = f"nothing that it showed changed with {comparisons.num_seeds} other seeds"
        if comparisons.problem_matters is False and not comparisons.prompts_differ:
            yield EnvironmentFinding(
                EnvironmentFindingKind.ONE_WORLD, f"it ignores the seed: {tried}, nor with another problem"
            )
        else:
            yield EnvironmentFinding(EnvironmentFindingKind.SEED_IGNORED, tried)
