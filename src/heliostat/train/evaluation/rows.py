"""Evaluations and transcripts as rows of a run folder's JSONL files, and back.

Left out: metrics (``tracking``) and pages (``report``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heliostat.storage import read_rows
from heliostat.train.evaluation.conversation import TextOf, conversation
from heliostat.train.evaluation.evaluate import Evaluation, ProblemResult
from heliostat.types import Group

COUNTS = ("num_failures", "num_cut", "max_length")
"""Counts of a result that rows of earlier versions lack."""


def eval_rows(step: int, phase: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Convert an evaluation to one row per problem."""
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
            **{name: getattr(result, name) for name in COUNTS},
        }
        for result in evaluation.results
    ]


def evaluation_from_rows(rows: Iterable[Mapping[str, Any]]) -> Evaluation:
    """Restore an evaluation from the rows of ``eval_rows``.

    Raises:
        ValueError: a row lacks a value, or has one of another type.
    """
    return Evaluation(tuple(_result(row) for row in rows))


def recorded_evaluation(evals: Path, phase: str, step: int | None = None) -> Evaluation | None:
    """Read the evaluation ``before`` or ``after`` training from a run's ``evals.jsonl``.

    Args:
        step: reads rows of this step alone.

    **Limits** ``None`` where the file has no such rows, or rows of another shape.
    """
    rows = [row for row in read_rows(evals).rows if row.get("phase") == phase]
    rows = [row for row in rows if step is None or row.get("step") == step]
    with suppress(ValueError):
        return evaluation_from_rows(rows) if rows else None
    return None


def _result(row: Mapping[str, Any]) -> ProblemResult:
    shaped = (
        all(isinstance(row.get(name), str) for name in ("task", "problem_id"))
        and all(type(row.get(name)) is int for name in ("num_samples", "num_success"))
        and isinstance(row.get("mean_reward"), int | float)
        and (row.get("greedy_success") is None or isinstance(row["greedy_success"], bool))
    )
    if not shaped or not 0 <= row["num_success"] <= row["num_samples"] or not row["num_samples"]:
        raise ValueError(f"a row is not an evaluation result: {dict(row)!r:.80}")
    return ProblemResult(
        task=row["task"],
        problem_id=row["problem_id"],
        num_samples=row["num_samples"],
        num_success=row["num_success"],
        mean_reward=row["mean_reward"],
        greedy_success=row.get("greedy_success"),
        **{name: row[name] for name in COUNTS if type(row.get(name)) is int},
    )


def transcript_rows(
    step: int, phase: str, groups: Sequence[Group], text_of: TextOf, answer_of: TextOf
) -> list[dict[str, Any]]:
    """Convert the first completion of every group to a readable row.

    A trajectory's row has its turns and the environment's answers as well, and as its prompt the text that the model
    read, since the first observation is a part of it.
    """
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
            "num_tokens": group.completions[0].num_sampled,
            **_turns(group, text_of, answer_of),
        }
        for group in groups
    ]


def _turns(group: Group, text_of: TextOf, answer_of: TextOf) -> dict[str, Any]:
    said = conversation(group.completions[0], text_of, answer_of)
    if not said:
        return {}
    return {"prompt": text_of(group.prompt.token_ids), "turns": [asdict(one) for one in said]}
