"""The guard's rules applied again to a run's log, those included that need no level of the run's own.

Logs of other trainers are read too, under their own names for the same numbers. Left out: what the findings mean
together (``diagnosis.explain``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heliostat.arguments import listed
from heliostat.monitors import (
    ABSOLUTE_RULES,
    AbsoluteMonitor,
    Finding,
    Guard,
    default_rules,
    evaluation_signals,
    recipe_numbers,
)
from heliostat.monitors.absolute_monitor import FIRST_STEPS
from heliostat.monitors.absolute_rules import LONGEST_SOLUTION
from heliostat.monitors.foreign import METRIC_OF
from heliostat.report.runs.read import EvaluatedProblem, Run, number

Row = Mapping[str, float | None]
Settings = Mapping[str, float]
RULE_ORDER = {rule.name: place for place, rule in enumerate(ABSOLUTE_RULES)}


def replay(rows: Sequence[Row], start: int = 20, size: int = 40, settings: Settings | None = None,
           before: Sequence[EvaluatedProblem] = ()) -> list[Finding]:  # fmt: skip
    """Find what the rules find on logged steps, by onset; where two findings begin together, the cause comes first.

    A run too short for ``start`` and ``size`` is compared with its second tenth to third tenth.

    Args:
        settings: numbers of the recipe that sentences name.
        before: the evaluation before training, problem by problem.
    """
    rows = listed(rows)
    if len(rows) < start + size + 10:
        start, size = len(rows) // 10, max(2, len(rows) // 5)
    guard, absolute = Guard(default_rules(start, size)), AbsoluteMonitor(ABSOLUTE_RULES, settings or {})
    found = absolute.evaluated(evaluation_signals(before)) if before else []
    for row in rows:
        step = int(row["step"] or 0)
        found += absolute.read(step, row)
        gone = absolute.withdrawn()
        found = [finding for finding in found if finding.step or finding.rule not in gone]
        found += [finding for finding in guard.read(step, row) if finding.rule not in absolute.hidden]
    return _ordered(_unexplained(found))


def replay_run(run: Run) -> list[Finding]:
    """Return the findings of a run folder, its evaluation before training included."""
    start = int(run.setting("guard.baseline_start", 20))
    size = int(run.setting("guard.baseline_steps", 40))
    prefixed = run.setting("prefix.name", "none") != "none"  # prefixes begin where nothing is solved
    trains = run.setting("train.num_steps", 1) != 0
    before = [row for row in run.evaluations if row.phase == "before"] if trains and not prefixed else []
    longest = number(run.summary, "longest_solution")
    settings = recipe_numbers(run.recipe) | ({LONGEST_SOLUTION: longest} if longest else {})
    return replay(training_rows(run.metrics), start, size, settings, before)


def absolute_findings(run: Run) -> list[Finding]:
    """Return the findings that need no level of the run's own, in order of onset."""
    return [finding for finding in replay_run(run) if finding.is_absolute]


def training_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of post-training; supervised steps are numbered up to 0."""
    return [row for row in rows if (row["step"] or 0) > 0]


def translated(row: Row) -> dict[str, float | None]:
    """Return a row with other trainers' metrics under our names as well; our own stay as they are."""
    ours = {METRIC_OF[key]: value for key, value in row.items() if key in METRIC_OF}
    return {**ours, **row}


def _unexplained(found: Sequence[Finding]) -> list[Finding]:
    """Leave out findings of the evaluation whose cause shows in the first steps."""
    causes = [finding for finding in found if finding.is_absolute and finding.onset <= FIRST_STEPS]
    hidden = {name for finding in causes for name in ABSOLUTE_RULES[RULE_ORDER[finding.rule]].hides}
    return [finding for finding in found if finding.step or finding.rule not in hidden]


def _ordered(found: Sequence[Finding]) -> list[Finding]:
    """Sort by onset, causes first; effects of a shortcut past the verifier on held-out metrics come after it."""
    shortcut = next((finding.onset for finding in found if finding.rule == "unconfirmed"), 0)

    def place(finding: Finding) -> tuple[int, int, int]:
        onset = max(finding.onset, shortcut) if finding.rule in ("pass-k-falls", "template") else finding.onset
        return onset, _place(finding), finding.step

    return sorted(found, key=place)


def _place(finding: Finding) -> int:
    """Rank mismatch, non-finite numbers and data before everything else, then causes in their order."""
    if finding.level in ("mismatch", "broken") or finding.rule == "duplicates":
        return -1
    last = len(RULE_ORDER) + (finding.rule != "unconfirmed")
    return RULE_ORDER.get(finding.rule, last)
