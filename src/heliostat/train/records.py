"""Evaluations and transcripts as rows of a run folder's JSONL files, and back.

Left out: metrics (``tracking``) and pages (``report``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from heliostat.train.evaluate import Evaluation, ProblemResult
from heliostat.types import Group


def eval_rows(step: int, phase: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per problem."""
    return [
        {
            "step": step,
            "phase": phase,
            "task": result.task,
            "problem_id": result.problem_id,
            "num_samples": result.num_samples,
            "num_success": result.num_success,
            "mean_reward": result.mean_reward,
            "greedy_success": result.greedy_success,
        }
        for result in evaluation.results
    ]


def evaluation_from_rows(rows: Iterable[Mapping[str, Any]]) -> Evaluation:
    """The evaluation that ``eval_rows`` wrote."""
    names = ("task", "problem_id", "num_samples", "num_success", "mean_reward", "greedy_success")
    return Evaluation(tuple(ProblemResult(**{name: row[name] for name in names}) for row in rows))


def transcript_rows(step: int, phase: str, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The first completion of every group, for people to read."""
    return [
        {
            "step": step,
            "phase": phase,
            "task": group.prompt.problem.task,
            "problem_id": group.prompt.problem.problem_id,
            "prompt": group.prompt.problem.question,
            "completion": group.completions[0].text,
            "reward": group.verdicts[0].reward,
            "success": group.verdicts[0].success,
            "stop_reason": str(group.completions[0].stop_reason),
            "answer": group.prompt.problem.answer,
            "num_tokens": len(group.completions[0].token_ids),
        }
        for group in groups
    ]
