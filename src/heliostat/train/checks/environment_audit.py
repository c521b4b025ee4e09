"""The audit of an environment before training: its reports, their sentences, and the reason to stop, if any.

Left out: the episodes that are played and compared (``tasks.environment_audit.audit``), and storing the reports
(``reward_audit``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from heliostat.config import AuditSection, Recipe
from heliostat.tasks import EnvironmentReport, Task, audit_environment
from heliostat.tasks.environment_audit.audit import IN_A_RUN
from heliostat.tasks.environment_audit.findings import EnvironmentFindingKind
from heliostat.tasks.environments.pool import EnvironmentPool

UNLIKE = (EnvironmentFindingKind.NOT_REPEATABLE, EnvironmentFindingKind.SIBLINGS)
"""Findings after which the members of a group do not see the same world."""

UNWARNED = (EnvironmentFindingKind.NO_ORACLE, EnvironmentFindingKind.NO_REWARD, EnvironmentFindingKind.GLOBAL_RANDOM)
"""Notes that are no reason for a warning at the start of a run."""


def audit_episodes(recipe: Recipe, tasks: Sequence[Task], pool: EnvironmentPool) -> list[EnvironmentReport]:
    """Audit the recipe's environment on the problems of every task, in the processes of the run.

    Takes ``audit.budget_s`` at most, from the environment's first answer on.

    Raises:
        EnvironmentNotLoaded: no process can load the environment.
    """
    effort = dataclasses.replace(IN_A_RUN, budget_s=recipe.audit.budget_s / len(tasks))
    max_turns = recipe.environment.max_turns
    reports = [
        audit_environment(pool.spec, task.train, max_turns=max_turns, effort=effort, pool=pool) for task in tasks
    ]
    return [report.for_a_judge() for report in reports] if recipe.judge.enabled else reports


def reason_against(report: EnvironmentReport, section: AuditSection) -> str:
    """Explain why a run in this environment would learn nothing sound; empty where it may go on."""
    way_out = "Fix the environment, or go on with --no-audit (audit.enabled = false)"
    for finding in report.findings:
        if finding.kind in UNLIKE:
            return f"{report.environment}: {finding.sentence}. {way_out}"
    oracle = report.oracle
    failed = 0 if oracle is None else oracle.num_episodes - oracle.num_successes
    told = any(finding.kind is EnvironmentFindingKind.ORACLE_FAILS for finding in report.findings)
    if oracle is None or not told or failed <= section.max_refused * oracle.num_episodes:
        return ""
    return (
        f"{report.environment}: its own right actions fail on {failed} of {oracle.num_episodes} problems within "
        f"environment.max_turns = {report.max_turns}. {way_out}; audit.max_refused = {section.max_refused:g} is the "
        "accepted share"
    )


def environment_sentences(report: EnvironmentReport, seconds: float, section: AuditSection) -> list[str]:
    """Write the report of an audit that lets the run go on."""
    num_played = sum(policy.num_episodes for policy in report.policies)
    lines = [
        f"{report.environment} audited in {seconds:.1f} s: {num_played} episodes, the slowest call took "
        f"{report.slowest_ms:.0f} ms, {report.verdict}"
    ]
    if report.num_cut:
        lines.append(
            f"warning: {report.environment} is slow, and the audit stopped after audit.budget_s = "
            f"{section.budget_s:g} s, with {report.num_cut} episodes not ended"
        )
    warned = [finding for finding in report.findings if finding.kind not in UNWARNED]
    return lines + [f"warning: {finding.kind} in {report.environment}: {finding.sentence}" for finding in warned]
