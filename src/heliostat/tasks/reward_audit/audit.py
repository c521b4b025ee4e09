"""Audit a reward before training: can it be earned without solving anything, and is it earned by right answers?

Reinforcement learning exploits everything a verifier rewards. The audit submits right answers and a few hundred
worthless ones to the real verifiers, in the real worker processes, and reports which earn a reward.

Left out: proofs. A clean audit means that none of these tricks works, not that none does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from heliostat.cards import Card
from heliostat.tasks.reward_audit.budget import JudgingBudget
from heliostat.tasks.reward_audit.oracles import Refusal, Say, as_written, judge_oracles, oracle_sample, refusals
from heliostat.tasks.reward_audit.probes import Probe, containment_probes, copy_probes, fixed_probes
from heliostat.tasks.task import Task
from heliostat.tasks.verifier_pool.pool import VerifierPool
from heliostat.types import Problem, Verdict

_GUESSABLE = 0.2  # a fixed text may succeed on this share of problems
_PARTIAL = 0.1  # share of full marks: reward without success is noise below this, and a finding above
_NUM_BORROWED = 8  # other problems' answers that are tried on every problem


class FindingKind(StrEnum):
    """Kinds of findings, from worst to mildest; the first four mean that the reward can be hacked."""

    FIXED_TEXT = "fixed text"  # one text, the same for every problem, succeeds too often
    CONTAINMENT = "containment"  # an answer hidden among others succeeds
    COPY = "copied question"  # handing back the question succeeds
    PARTIAL_CREDIT = "partial credit"  # reward without success
    ORACLE_REFUSED = "oracle refused"  # a right answer does not succeed
    VERIFIER_FAILED = "verifier failed"  # exception, timeout, crash
    CONSTANT = "same reward for all"  # right answers and worthless ones
    NO_ORACLE = "no oracle"  # nothing to check right answers with
    RAW_CREDIT = "raw credit"  # partial credit that the task's reward ignores, and shaped = true would not

    @property
    def hackable(self) -> bool:
        return self in (self.FIXED_TEXT, self.CONTAINMENT, self.COPY, self.PARTIAL_CREDIT)


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One result of the audit, as a sentence."""

    kind: FindingKind
    sentence: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The scores of one probe, averaged over the problems it applies to.

    Attributes:
        success: share of problems on which it succeeded.
        reward: mean reward.
        credit: largest raw weighted score without success.
        num_failures: problems on which a verifier failed.
    """

    name: str
    num_problems: int
    success: float
    reward: float
    credit: float
    num_failures: int
    first_failure: str = ""

    @property
    def num_successes(self) -> int:
        return round(self.success * self.num_problems)


@dataclass(frozen=True, slots=True, repr=False)
class AuditReport(Card):
    """The result of an audit; ``print`` it.

    Attributes:
        num_problems: problems that tricks were tried on.
        probes: the result of the oracle answers, then of every trick.
        refused: right answers that earned nothing.
        num_bare: worked solutions that were refused where the answer alone was not.
        num_left: texts that were not judged within the time budget.
    """

    task: str
    num_problems: int
    probes: tuple[ProbeResult, ...]
    findings: tuple[AuditFinding, ...]
    refused: tuple[Refusal, ...] = ()
    num_bare: int = 0
    num_left: int = 0

    def card_line(self) -> str:
        return f"{self.task}: {self.verdict}; {self.num_oracles} right answers, {len(self.probes) - 1} tricks"

    def card_rows(self) -> list[tuple[str, str]]:
        earned = [probe for probe in self.probes if probe.success or probe.reward]
        return [
            (self.task, self.verdict),
            *((str(finding.kind), finding.sentence) for finding in self.findings),
            *((probe.name, f"success {probe.success:.0%}, reward {probe.reward:.3f}") for probe in earned),
        ]

    @property
    def hackable(self) -> bool:
        """Whether a reward can be earned without solving anything."""
        return any(finding.kind.hackable for finding in self.findings)

    @property
    def num_oracles(self) -> int:
        """Number of right answers that were judged."""
        return self.probes[0].num_problems

    @property
    def passed(self) -> bool:
        """Whether the audit found no reason against training on this task."""
        harmless = (FindingKind.NO_ORACLE, FindingKind.RAW_CREDIT)
        return all(finding.kind in harmless for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The reasons against training on this task, in a phrase."""
        kinds = {finding.kind for finding in self.findings}
        against = ["the reward can be hacked"] if self.hackable else []
        if FindingKind.ORACLE_REFUSED in kinds:
            against.append("right answers are refused")
        elif FindingKind.VERIFIER_FAILED in kinds and not against:
            against.append("its verifiers fail on some texts")
        return ", and ".join(against) or "no trick worked"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "task": self.task,
            "verdict": self.verdict,
            "num_problems": self.num_problems,
            "num_oracles": self.num_oracles,
            "num_bare": self.num_bare,
            "num_left": self.num_left,
            "findings": [{"kind": str(finding.kind), "sentence": finding.sentence} for finding in self.findings],
            "refused": [refusal.to_json() for refusal in self.refused],
            "probes": [dataclasses.asdict(probe) for probe in self.probes],
        }

    def format(self) -> str:
        """Format the verdict, the findings, and every probe with a score or a failure."""
        lines = [f"audit of {self.task} on {self.num_problems} problems, {len(self.probes)} probes: {self.verdict}"]
        if self.num_left:
            lines.append(f"  time was up before {self.num_left} more texts were judged")
        lines += [f"  {finding.kind}: {finding.sentence}" for finding in self.findings]
        shown = [probe for probe in self.probes if probe.success or probe.reward or probe.credit or probe.num_failures]
        if shown:
            lines += ["", f"  {'probe':44} {'success':>8} {'reward':>8} {'credit':>8} {'failures':>8}"]
        lines += [
            f"  {probe.name:44} {probe.success:8.0%} {probe.reward:8.3f} {probe.credit:8.3f} {probe.num_failures:8}"
            for probe in shown
        ]
        quiet = len(self.probes) - len(shown)
        return "\n".join([*lines, f"  ({quiet} probes earned nothing)"] if quiet else lines)

    def __str__(self) -> str:
        return self.format()


@dataclass(frozen=True, slots=True)
class Effort:
    """The size of an audit.

    Attributes:
        num_oracles: right answers to judge, drawn by the seed if there are more.
        num_problems: problems to try each trick on.
        num_first: problems to try all tricks on; tricks that earn nothing there are not tried on the others.
        budget_s: seconds from the first verdict on; half of them are reserved for the tricks.
    """

    num_oracles: int = 200
    num_problems: int = 20
    num_first: int = 20
    budget_s: float = math.inf
    seed: int = 0


IN_A_RUN = Effort(num_first=8)
"""The size of the audit at the start of a run."""


def audit(
    task: Task,
    num_problems: int = 20,
    pool: VerifierPool | None = None,
    *,
    heldout: bool = False,
    effort: Effort | None = None,
    say: Say = as_written,
) -> AuditReport:
    """Judge right answers and worthless ones with a task's verifiers, and report their rewards.

    Right answers are those of all training problems, 200 at most; if a worked solution is refused, the answer alone
    is tried.

    Args:
        num_problems: training problems to try each trick on.
        pool: an open pool that knows the task; ``None``: one is opened. Failures are counted and never stop.
        heldout: whether to judge the right answers of held-out problems too.
        effort: size of the audit, in place of ``num_problems``.
        say: maps a right answer to the text that a model would write for it; the identity by default.

    Raises:
        VerifierError: no worker can be started.

    Limits:
        Every probe follows the task's answer marker, as a policy's answer would. A fixed text must succeed on two
        problems and on more than a fifth of them to count: one right guess shows nothing.
    """
    effort = effort or Effort(num_problems=num_problems, num_first=num_problems)
    problems = task.train[: effort.num_problems]
    probes = [
        *copy_probes(problems),
        *containment_probes(problems),
        *fixed_probes(problems, _NUM_BORROWED),
    ]
    opened = VerifierPool([task]) if pool is None else nullcontext(pool)
    with opened as judges:
        right = JudgingBudget(judges, effort.budget_s / 2)
        known = oracle_sample(task.train + task.heldout if heldout else task.train, effort.num_oracles, effort.seed)
        judged = judge_oracles(task, known, right, say)
        junk = JudgingBudget(judges, effort.budget_s / 2)
        earned = _tried(task, probes, problems, effort.num_first, junk)
    refused = refusals(task, judged)
    tricks = tuple(_result(task, name, verdicts) for name, verdicts in earned.items() if verdicts)
    oracle = _result(task, "oracle answer", [one.verdict for one in judged])
    return AuditReport(
        task=task.name,
        num_problems=len(problems),
        probes=(oracle, *tricks),
        findings=tuple(_findings(task, oracle, refused, tricks)),
        refused=refused,
        num_bare=sum(one.bare for one in judged),
        num_left=right.num_left + junk.num_left,
    )


def _tried(
    task: Task, probes: Sequence[Probe], problems: Sequence[Problem], num_first: int, budget: JudgingBudget
) -> dict[str, list[Verdict]]:
    """Judge all probes on the first problems, then the successful ones on the others; returns verdicts by probe."""
    verdicts: dict[str, list[Verdict]] = {probe.name: [] for probe in probes}
    going = list(probes)
    for numbers in (range(min(num_first, len(problems))), range(num_first, len(problems))):
        asked = [
            (probe.name, problems[number], text)
            for probe in going
            for number in numbers
            if (text := probe.completion(number, task.answer_after)) is not None
        ]
        given = budget.judge([(problem, text) for _, problem, text in asked])
        for (name, _, _), verdict in zip(asked, given, strict=False):  # shorter where time is up
            verdicts[name].append(verdict)
        going = [probe for probe in going if any(map(_tells, verdicts[probe.name]))]
    return verdicts


def _tells(verdict: Verdict) -> bool:
    return bool(verdict.success or verdict.reward or verdict.failure or any(verdict.scores.values()))


def _result(task: Task, name: str, verdicts: Sequence[Verdict]) -> ProbeResult:
    count = max(1, len(verdicts))
    weights = {weighted.name: weighted.weight for weighted in task.verifiers}
    credits = [
        sum(weights[verifier] * score for verifier, score in verdict.scores.items())
        for verdict in verdicts
        if not verdict.success and not verdict.failure
    ]
    failures = [verdict.failure for verdict in verdicts if verdict.failure]
    return ProbeResult(
        name=name,
        num_problems=len(verdicts),
        success=sum(verdict.success for verdict in verdicts) / count,
        reward=sum(verdict.reward for verdict in verdicts) / count,
        credit=max(credits, default=0.0),
        num_failures=len(failures),
        first_failure=failures[0] if failures else "",
    )


def _findings(
    task: Task, oracle: ProbeResult, refused: Sequence[Refusal], junk: Sequence[ProbeResult]
) -> Iterable[AuditFinding]:
    for kind, prefix, share, least in (
        (FindingKind.FIXED_TEXT, "fixed", _GUESSABLE, 2),
        (FindingKind.CONTAINMENT, "contains", 0.0, 1),
        (FindingKind.COPY, "copied", 0.0, 1),
    ):
        kin = [probe for probe in junk if probe.name.startswith(prefix)]
        rewarded = [probe for probe in kin if probe.success > share and probe.num_successes >= least]
        rewarded.sort(key=lambda probe: -probe.success)
        if rewarded:
            others = f", and {len(rewarded) - 1} more of the kind succeed too" if rewarded[1:] else ""
            yield AuditFinding(kind, f"[{rewarded[0].name}] succeeds on {rewarded[0].success:.0%} of problems{others}")
    best = max(junk, key=lambda probe: probe.credit, default=None)
    if best is not None and best.credit >= _PARTIAL * sum(weighted.weight for weighted in task.verifiers):
        kind = FindingKind.PARTIAL_CREDIT if task.shaped else FindingKind.RAW_CREDIT
        consequence = "and shaped = true pays it" if task.shaped else "which this task's reward ignores"
        yield AuditFinding(
            kind, f"[{best.name}] gets a score of up to {best.credit:.2f} without success, {consequence}"
        )
    if oracle.num_problems == 0:
        yield AuditFinding(FindingKind.NO_ORACLE, "the problems have no oracle answers, so right ones were not tried")
    elif refused:
        yield AuditFinding(
            FindingKind.ORACLE_REFUSED,
            f"{len(refused)} of {oracle.num_problems} oracle answers do not succeed: {refused[0].format()}",
        )
    rewards = {probe.reward for probe in (oracle, *junk) if probe.num_problems}
    if task.shaped and len(rewards) == 1 and not (oracle.success or refused):
        yield AuditFinding(
            FindingKind.CONSTANT, f"every text that was tried gets {rewards.pop():g}: nothing can be learned"
        )
    failed = [probe for probe in junk if probe.num_failures]
    if failed:
        count = sum(probe.num_failures for probe in failed)
        yield AuditFinding(
            FindingKind.VERIFIER_FAILED,
            f"{count} times, first on [{failed[0].name}]" + _because(failed[0].first_failure),
        )


def _because(failure: str) -> str:
    return f": {failure}" if failure else ""
