"""Audit an environment before training: can a return be earned for nothing, and is its world a function of the problem?

Policies that solve nothing play a few problems, and so does the environment's oracle if it has one. Recorded episodes
are then repeated: once more, beside a sibling, with other seeds, and on other problems.

Left out: proofs. A clean audit means that none of these policies earns anything, not that none does.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from heliostat.cards import Card
from heliostat.tasks.environment_audit.comparisons import choose, compare
from heliostat.tasks.environment_audit.episodes import Played, Start, play
from heliostat.tasks.environment_audit.findings import (
    EnvironmentFinding,
    EnvironmentFindingKind,
    PolicyResult,
    find,
    result_of,
)
from heliostat.tasks.environment_audit.policies import Policy, echo, fixed_policies, null, oracle, wander
from heliostat.tasks.environments.contract import EnvironmentFailed, EnvironmentSpec
from heliostat.tasks.environments.pool import EnvironmentPool, NoOracle
from heliostat.tasks.environments.process import label
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.types import Problem


@dataclass(frozen=True, slots=True)
class Effort:
    """The size of an audit.

    Attributes:
        num_problems: problems that each policy plays.
        num_repeated: problems whose episodes are repeated.
        num_seeds: other seeds that they are repeated with.
        budget_s: seconds from the first answer of the environment on; half of them are reserved for the policies that
            solve nothing.
    """

    num_problems: int = 20
    num_repeated: int = 3
    num_seeds: int = 4
    budget_s: float = math.inf


_NUM_RANDOM = 3  # random episodes of a problem without an oracle: only actions that are understood show a world

IN_A_RUN = Effort(num_repeated=2, num_seeds=2)
"""The size of the audit at the start of a run."""


@dataclass(frozen=True, slots=True, repr=False)
class EnvironmentReport(Card):
    """The result of an audit; ``print`` it.

    Attributes:
        environment: its name in messages.
        num_problems: problems that were played.
        max_turns: turns that an episode had at most.
        policies: the result of every policy.
        slowest_ms: the slowest call of the environment that was answered, in milliseconds.
        num_cut: episodes that were cut because time was up.
    """

    environment: str
    num_problems: int
    max_turns: int
    policies: tuple[PolicyResult, ...]
    findings: tuple[EnvironmentFinding, ...]
    slowest_ms: float
    num_cut: int = 0

    def card_line(self) -> str:
        return f"{self.environment}: {self.verdict}; {self.num_problems} problems, {len(self.policies)} policies"

    def card_rows(self) -> list[tuple[str, str]]:
        return [
            (self.environment, self.verdict),
            *((str(finding.kind), finding.sentence) for finding in self.findings),
            *((one.name, f"{one.num_successes} of {one.num_episodes} episodes succeeded") for one in self.policies),
        ]

    @property
    def oracle(self) -> PolicyResult | None:
        """The result of the environment's oracle, if it has one."""
        return next((policy for policy in self.policies if policy.name == "oracle"), None)

    @property
    def hackable(self) -> bool:
        """Whether a return can be earned without solving anything."""
        return any(finding.kind.hackable for finding in self.findings)

    @property
    def is_scored(self) -> bool:
        """Whether the environment gives rewards; otherwise the task's verifiers judge."""
        return all(finding.kind is not EnvironmentFindingKind.NO_REWARD for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether the audit found no reason against training in this environment."""
        return all(finding.kind.harmless for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The reasons against training in this environment, in a phrase."""
        against = [str(finding.kind) for finding in self.findings if not finding.kind.harmless]
        return ", and ".join(against) or "nothing speaks against training in it"

    def for_a_judge(self) -> EnvironmentReport:
        """Return the report where a judge scores episodes: in a silent environment, right actions can earn nothing."""
        if self.is_scored or any(policy.num_successes for policy in self.policies):
            return self
        kept = [finding for finding in self.findings if finding.kind is not EnvironmentFindingKind.ORACLE_FAILS]
        return dataclasses.replace(self, findings=tuple(kept))

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "environment": self.environment,
            "verdict": self.verdict,
            "num_problems": self.num_problems,
            "max_turns": self.max_turns,
            "slowest_ms": self.slowest_ms,
            "num_cut": self.num_cut,
            "findings": [{"kind": str(finding.kind), "sentence": finding.sentence} for finding in self.findings],
            "policies": [dataclasses.asdict(policy) for policy in self.policies],
        }

    def format(self) -> str:
        """Format the verdict, the findings, and every policy."""
        lines = [
            f"audit of {self.environment} on {self.num_problems} problems: {self.verdict}",
            f"  up to {self.max_turns} turns; the slowest call took {self.slowest_ms:.1f} ms",
        ]
        if self.num_cut:
            lines.append(f"  time was up before {self.num_cut} more episodes had ended")
        lines += [f"  {finding.kind}: {finding.sentence}" for finding in self.findings]
        lines += ["", f"  {'policy':36} {'success':>8} {'return':>8} {'turns':>6} {'failures':>8}"]
        lines += [
            f"  {one.name:36} {one.success:8.0%} {one.mean_return:8.3f} {one.mean_turns:6.1f} {one.num_failures:8}"
            for one in self.policies
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.format()


def audit_environment(
    spec: EnvironmentSpec,
    problems: Sequence[Problem],
    *,
    max_turns: int = 8,
    effort: Effort | None = None,
    pool: EnvironmentPool | None = None,
) -> EnvironmentReport:
    """Let policies that solve nothing play an environment, repeat episodes, and report returns and differences.

    Args:
        spec: the environment.
        problems: of the task that it is trained on; the first ``effort.num_problems`` are played.
        max_turns: turns of an episode.
        pool: an open pool of the environment; ``None``: one is opened.

    Raises:
        EnvironmentNotLoaded: no process can load it.

    **Limits**: a policy must succeed on more than a fifth of the problems, and on two if there are as many, to count:
    one lucky guess shows nothing. Actions that an environment does not understand show little of its world, so "ignores
    the seed" is sure only where the environment has an oracle.
    """
    effort = effort or Effort()
    problems = problems[: effort.num_problems]
    with EnvironmentPool(spec) if pool is None else nullcontext(pool) as opened:
        tools, has_oracle = _introduce(opened, problems[0])
        began = time.monotonic()

        def play_all(policies: Mapping[str, Policy], deadline: float, num: int = 1) -> list[Played]:
            starts = [
                [Start(problem, (name, each), max_turns) for problem in problems for _ in range(num)]
                for name, each in policies.items()
            ]
            return [played for of_policy in starts for played in play(opened, of_policy, deadline, tools)]

        half, end = began + effort.budget_s / 2, began + effort.budget_s
        telling = play_all({"oracle": oracle} if has_oracle else {}, half)
        right = [action for one in telling for action in one.actions]
        telling += play_all({"random": wander}, half, num=1 if has_oracle else _NUM_RANDOM)
        comparisons = compare(opened, spec, choose(telling, effort.num_repeated), effort.num_seeds, half)
        worthless = play_all({"null": null, "echo": echo} | fixed_policies(tools, right), end)
        slowest_s = opened.counts.slowest_s
    ended = [one for one in telling + worthless if not one.is_cut]
    names = dict.fromkeys(one.start.policy[0] for one in ended)
    results = [result_of(name, [one for one in ended if one.start.policy[0] == name]) for name in names]
    return EnvironmentReport(
        environment=label(spec),
        num_problems=len(problems),
        max_turns=max_turns,
        policies=tuple(results),
        findings=tuple(find(results, ended, comparisons, has_oracle=has_oracle)),
        slowest_ms=1e3 * slowest_s,
        num_cut=len(telling) + len(worthless) - len(ended),
    )


def _introduce(pool: EnvironmentPool, problem: Problem) -> tuple[tuple[Any, ...], bool]:
    """Return the tools' schemas, and whether there is an oracle."""
    episode = pool.open(row_of(problem), seed_of(problem), problem.described)
    try:
        tools = episode.tools().result()
        episode.oracle().result()
    except NoOracle:
        return tools, False
    except EnvironmentFailed:  # the policies meet it again, and count it
        return (), False
    finally:
        episode.close()
    return tools, True
