"""The audit before training: the run's verifiers judge right answers and reward hacks within seconds.

    tasks, pool, model's text  ->  audit.json, printed sentences, and the reason to stop, if any

With an environment, policies that solve nothing play it first (``environment_audit``). A judge of episodes is not tried
with known exploits, which are answers of one turn.

Right answers are judged as the model would write them: encoded, decoded, and ended at the recipe's stop strings.

Left out: the texts of an audit and its findings (``tasks.reward_audit.audit``).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

from heliostat.config import AuditSection, Recipe
from heliostat.models import decode, encode_solution
from heliostat.tasks import AuditReport, JudgeFailed, Task, VerifierPool, audit
from heliostat.tasks.reward_audit.audit import IN_A_RUN, FindingKind
from heliostat.tasks.reward_audit.exploits import JudgeReport, audit_judge
from heliostat.tasks.reward_audit.oracles import Say, knows_answers
from heliostat.train.checks.environment_audit import audit_episodes, environment_sentences, reason_against
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.run_folder.folder import RunFolder
from heliostat.types import Problem

WARNED = frozenset(kind for kind in FindingKind if kind.hackable) | {FindingKind.CONSTANT, FindingKind.VERIFIER_FAILED}


NOT_OF_EPISODES = "the judge is not tried with known exploits, which are answers of one turn: it judges whole episodes"
"""Printed where a recipe has a judge and an environment."""


class RewardRefused(RuntimeError):
    """The verifiers refuse too many right answers for a run to learn from them."""


def audit_rewards(
    recipe: Recipe,
    tasks: Sequence[Task],
    pool: VerifierPool,
    bundle: ModelBundle,
    folder: RunFolder,
    note: Callable[[str], None],
) -> str:
    """Audit the verifiers of every task of a run and its environment, store the reports, and print their sentences.

    Returns:
        The reason to stop the run; empty if it may go on.
    """
    section = recipe.audit
    began = time.monotonic()
    played = [] if pool.environments is None else audit_episodes(recipe, tasks, pool.environments)
    play_seconds = time.monotonic() - began
    began = time.monotonic()
    judged, tasks = tasks, [task for task in tasks if task.verifiers]
    effort = dataclasses.replace(
        IN_A_RUN, num_oracles=section.num_oracles, budget_s=section.budget_s / max(1, len(tasks)), seed=recipe.run.seed
    )
    reports = [audit(task, pool=pool, heldout=True, effort=effort, say=spoken(bundle)) for task in tasks]
    seconds = time.monotonic() - began
    reasons = (reason_to_stop(task, report, section) for task, report in zip(tasks, reports, strict=True))
    against = (reason_against(report, section) for report in played)
    stop = next(filter(None, (*against, *reasons)), "")
    judging = None if pool.environments is not None else pool.judging
    try:
        share_s = section.budget_s / max(1, len(judged))
        judges = [] if judging is None else [audit_judge(judging, task, budget_s=share_s) for task in judged]
    except JudgeFailed as error:
        judges, stop = [], stop or str(error)
    content = {"seconds": seconds, "stop": stop, "tasks": [report.to_json() for report in reports]}
    content |= {"environments": [report.to_json() for report in played]} if played else {}
    content |= {"judge": [report.to_json() for report in judges]} if judges else {}
    folder.write_audit(json.dumps(content, indent=1) + "\n")
    if not stop:
        told = [line for one in played for line in environment_sentences(one, play_seconds, section)]
        told += [line for report in reports for line in sentences(report, seconds, section)]
        told += [line for report in judges for line in judge_sentences(report, section)]
        told += [NOT_OF_EPISODES] if pool.judging is not None and judging is None else []
        for sentence in told:
            note(sentence)
    return stop


def judge_sentences(report: JudgeReport, section: AuditSection) -> list[str]:
    """Write the report of a judge's audit, and whether it was cut off by its limit of time."""
    lines = [f"{'warning: ' if report.hackable else ''}{report.card_line()}"]
    if report.num_left:
        lines.append(
            f"warning: {report.judge} is slow, and its audit stopped after its share of audit.budget_s = "
            f"{section.budget_s:g} s, with {report.num_left} texts not judged"
        )
    return lines


def spoken(bundle: ModelBundle) -> Say:
    """Build the function that maps a text to its form as a completion of this run's model."""

    def say(problem: Problem, text: str) -> str:
        ids = encode_solution(bundle.loaded, bundle.prompt(problem), text)
        decoded = decode(bundle.loaded, ids)
        positions = [decoded.find(stop) for stop in bundle.recipe.rollout.stop]
        return decoded[: min((position for position in positions if position >= 0), default=len(decoded))]

    return say


def reason_to_stop(task: Task, report: AuditReport, section: AuditSection) -> str:
    """Explain why a run on this task would learn nothing; empty where it may go on.

    A reward function without a column of the data may reward any text, so that only its failures count.
    """
    counted = [one for one in report.refused if one.failed or knows_answers(task)]
    refused = len(counted)
    if not refused or refused <= section.max_refused * report.num_oracles:
        return ""
    return (
        f"task '{report.task}': {refused} of {report.num_oracles} right answers earn nothing, for example "
        f"{counted[0].format()}. Fix the answers or the verifiers, or go on with --no-audit "
        f"(audit.enabled = false); audit.max_refused = {section.max_refused:g} is the accepted share"
    )


def sentences(report: AuditReport, seconds: float, section: AuditSection) -> list[str]:
    """Write the report of an audit that lets the run go on."""
    tricks = len(report.probes) - 1
    lines = [
        f"reward of '{report.task}' audited in {seconds:.1f} s: {report.num_oracles} right answers and {tricks} tricks "
        f"paid, {report.verdict}"
    ]
    if report.num_left:
        lines.append(
            f"warning: the verifiers of '{report.task}' are slow, and the audit stopped after audit.budget_s = "
            f"{section.budget_s:g} s, with {report.num_left} texts not judged"
        )
    if report.num_bare:
        lines.append(
            f"warning: {report.num_bare} worked solutions of '{report.task}' earn nothing, though their answers alone "
            "do: a warm start would teach solutions that the verifiers refuse"
        )
    if report.refused:
        lines.append(
            f"warning: {len(report.refused)} of {report.num_oracles} right answers of '{report.task}' earn nothing, "
            f"for example {report.refused[0].format()}"
        )
    hints = [finding for finding in report.findings if finding.kind in WARNED]
    return lines + [
        f"warning: {finding.kind} in the reward of '{report.task}': {finding.sentence}" for finding in hints
    ]
