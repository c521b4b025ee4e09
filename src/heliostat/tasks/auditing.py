"""Before training: can this task's reward be had without solving anything, and can it be had by solving it?

Reinforcement learning finds whatever a verifier pays for. The audit pays a few hundred worthless answers to the real
verifiers, in the real worker processes, and says what came back.

Left out: proofs. A clean audit means that none of these tricks works, not that none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum

from heliostat.tasks.pool import VerifierPool
from heliostat.tasks.probes import Probe, containment_probes, copy_probes, fixed_probes, oracle_probe
from heliostat.tasks.task import Task
from heliostat.types import Verdict

_GUESSABLE = 0.2  # a text that never looks at the question may succeed on this share of problems
_PARTIAL = 0.1  # of full marks: less than this for no success is noise, more is a way to earn
_NUM_BORROWED = 8  # other problems' answers that are tried on every problem


class FindingKind(StrEnum):
    """What is wrong, from worst to mildest; the first four mean that the reward can be hacked."""

    FIXED_TEXT = "fixed text"  # one text, the same for every problem, succeeds too often
    CONTAINMENT = "containment"  # an answer hidden among others succeeds
    COPY = "copied question"  # handing back the question succeeds
    PARTIAL_CREDIT = "partial credit"  # reward without success
    ORACLE_REFUSED = "oracle refused"  # a right answer does not succeed
    VERIFIER_FAILED = "verifier failed"  # exception, timeout, crash
    NO_ORACLE = "no oracle"  # nothing to check right answers with
    RAW_CREDIT = "raw credit"  # partial credit that the task's reward ignores, and shaped = true would not

    @property
    def hackable(self) -> bool:
        return self in (self.FIXED_TEXT, self.CONTAINMENT, self.COPY, self.PARTIAL_CREDIT)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know before training, as a sentence."""

    kind: FindingKind
    sentence: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe earned, averaged over the problems it applies to.

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


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found; ``print`` it."""

    task: str
    num_problems: int
    probes: tuple[ProbeResult, ...]
    findings: tuple[Finding, ...]

    @property
    def hackable(self) -> bool:
        """Whether some reward can be had without solving anything."""
        return any(finding.kind.hackable for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against training on this task."""
        harmless = (FindingKind.NO_ORACLE, FindingKind.RAW_CREDIT)
        return all(finding.kind in harmless for finding in self.findings)

    def format(self) -> str:
        """The verdict, the findings, and every probe that earned something or broke something."""
        verdict = "the reward can be hacked" if self.hackable else "no trick worked"
        lines = [f"audit of {self.task} on {self.num_problems} problems, {len(self.probes)} probes: {verdict}"]
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


def audit(task: Task, num_problems: int = 20, pool: VerifierPool | None = None) -> AuditReport:
    """Give a task's verifiers right answers and worthless ones, and report what they pay.

    Args:
        num_problems: training problems to try each probe on.
        pool: an open pool that knows the task; ``None``: one is opened, in which failures are counted and never stop.

    Raises:
        VerifierError: no worker can be started.

    Limits:
        Every probe is put behind the task's answer marker, as a policy would. A fixed text must succeed on two problems
        and on more than a fifth of them to count: one right guess shows nothing.
    """
    problems = task.train[:num_problems]
    probes = [
        oracle_probe(problems, task.answer_after),
        *copy_probes(problems),
        *containment_probes(problems),
        *fixed_probes(problems, _NUM_BORROWED),
    ]
    opened = VerifierPool([replace(task, on_failure="zero")]) if pool is None else nullcontext(pool)
    verdicts: dict[str, list[Verdict]] = {probe.name: [] for probe in probes}
    with opened as judges:
        asked = [_completions(probes, number, task.answer_after) for number in range(len(problems))]
        futures = [judges.judge(problem, list(texts.values())) for problem, texts in zip(problems, asked, strict=True)]
        for texts, future in zip(asked, futures, strict=True):
            for name, verdict in zip(texts, future.result(), strict=True):
                verdicts[name].append(verdict)
    results = tuple(_result(task, name, given) for name, given in verdicts.items())
    return AuditReport(task.name, len(problems), results, tuple(_findings(task, results)))


def _completions(probes: Sequence[Probe], number: int, answer_after: str) -> dict[str, str]:
    """By probe name, the completions to try on one problem."""
    texts = {probe.name: probe.completion(number, answer_after) for probe in probes}
    return {name: text for name, text in texts.items() if text is not None}


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


def _findings(task: Task, results: Sequence[ProbeResult]) -> Iterable[Finding]:
    oracle, junk = results[0], results[1:]
    for kind, prefix, share, least in (
        (FindingKind.FIXED_TEXT, "fixed", _GUESSABLE, 2),
        (FindingKind.CONTAINMENT, "contains", 0.0, 1),
        (FindingKind.COPY, "copied", 0.0, 1),
    ):
        kin = [probe for probe in junk if probe.name.startswith(prefix)]
        paid = [probe for probe in kin if probe.success > share and probe.num_successes >= least]
        paid.sort(key=lambda probe: -probe.success)
        if paid:
            others = f", and {len(paid) - 1} more of the kind succeed too" if paid[1:] else ""
            yield Finding(kind, f"[{paid[0].name}] succeeds on {paid[0].success:.0%} of problems{others}")
    best = max(junk, key=lambda probe: probe.credit)
    if best.credit >= _PARTIAL * sum(weighted.weight for weighted in task.verifiers):
        kind = FindingKind.PARTIAL_CREDIT if task.shaped else FindingKind.RAW_CREDIT
        consequence = "and shaped = true pays it" if task.shaped else "which this task's reward ignores"
        yield Finding(kind, f"[{best.name}] gets a score of up to {best.credit:.2f} without success, {consequence}")
    if oracle.num_problems == 0:
        yield Finding(FindingKind.NO_ORACLE, "the problems have no oracle answers, so right ones were not tried")
    elif oracle.success < 1:
        refused = oracle.num_problems - oracle.num_successes
        yield Finding(
            FindingKind.ORACLE_REFUSED,
            f"{refused} of {oracle.num_problems} oracle answers do not succeed" + _because(oracle.first_failure),
        )
    failed = [probe for probe in junk if probe.num_failures]
    if failed:
        count = sum(probe.num_failures for probe in failed)
        yield Finding(
            FindingKind.VERIFIER_FAILED,
            f"{count} times, first on [{failed[0].name}]" + _because(failed[0].first_failure),
        )


def _because(failure: str) -> str:
    return f": {failure}" if failure else ""
