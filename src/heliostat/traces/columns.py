"""Convert a trace to a row of plain columns, the same in JSONL and Parquet, and back with every value checked.

Left out: files (``files``, ``parquet``), and other programs' column names (``dialects``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from heliostat.traces.record import Trace, TraceSource
from heliostat.types import StopReason, Turn

REQUIRED = ("problem_id", "prompt_ids", "completion_ids", "reward", "tokenizer")


def to_columns(trace: Trace) -> dict[str, Any]:
    """Convert a trace to a row, with ``policy_run`` and ``policy_step``, since partitions use ``run`` and ``step``."""
    source = trace.source
    return {
        "problem_id": trace.problem_id,
        "task": trace.task,
        "prompt_ids": list(trace.prompt_ids),
        "prefix_ids": list(trace.prefix_ids),
        "cut": trace.cut,
        "completion_ids": list(trace.completion_ids),
        "logp_gen": [float(value) for value in trace.logp_gen],
        "text": trace.text,
        "reward": trace.reward,
        "success": trace.success,
        "stop_reason": str(trace.stop_reason),
        "seed": trace.seed,
        "flops": trace.flops,
        "turns": [asdict(turn) for turn in trace.turns],
        "environment": source.environment,
        "tokenizer": source.tokenizer,
        "policy": source.policy,
        "policy_run": source.run,
        "policy_step": source.step,
        "temperature": None if math.isnan(source.temperature) else source.temperature,
        "max_new_tokens": source.max_new_tokens,
        "verifier": source.verifier,
        "reencoded": source.reencoded,
    }


def from_columns(row: Mapping[str, Any]) -> Trace:
    """Convert a row to a trace; an optional column that is missing or ``None`` takes its default.

    Raises:
        ValueError: a needed column is missing or a value is of the wrong type or out of bounds; names the column.
    """
    present = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in REQUIRED if name not in present]:
        raise ValueError(f"column '{missing[0]}' is missing")
    values = {name: CHECKS[name](name, value) for name, value in present.items() if name in CHECKS}
    source = TraceSource(
        tokenizer=values.pop("tokenizer"),
        policy=values.pop("policy", ""),
        run=values.pop("policy_run", ""),
        step=values.pop("policy_step", 0),
        temperature=values.pop("temperature", math.nan),
        max_new_tokens=values.pop("max_new_tokens", 0),
        verifier=values.pop("verifier", "claimed"),
        reencoded=values.pop("reencoded", False),
        environment=values.pop("environment", ""),
    )
    values.setdefault("success", values["reward"] == 1.0)
    values.setdefault("task", values["problem_id"].rpartition("/")[0])
    return Trace(**values, source=source)


def _wrong(name: str, wanted: str, value: object) -> ValueError:
    return ValueError(f"column '{name}' must be {wanted}, got {value!r:.60}")


def _ids(name: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(type(one) is int and 0 <= one < 2**32 for one in value)
    if not whole:
        raise _wrong(name, "a list of token ids, whole numbers from 0 on", value)
    return tuple(value)


def _log_probs(name: str, value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(type(one) in (int, float) for one in value):
        raise _wrong(name, "a list of numbers", value)
    return np.asarray(value, dtype=np.float32) if value else ()


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return value


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _wrong(name, "a whole number from 0 to 2^63 - 1", value)
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong(name, "a finite number", value)
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(name, "true or false", value)
    return value


def _turns(name: str, value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise _wrong(name, "a list of turns", value)
    return tuple(_turn(name, one) for one in value)


def _turn(name: str, row: Mapping[str, Any]) -> Turn:
    present = {key: value for key, value in row.items() if value is not None}
    known = {field.name for field in fields(Turn)}
    if not {"start", "end"} <= set(present) <= known:
        raise _wrong(name, f"a list of turns with start, end and some of {', '.join(sorted(known))}", row)
    return Turn(**{key: TURN_CHECKS[key](f"{name}.{key}", value) for key, value in present.items()})


def _stop_reason(name: str, value: Any) -> StopReason:
    if value not in list(StopReason):
        raise _wrong(name, f"one of {', '.join(StopReason)}", value)
    return StopReason(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("prompt_ids", "prefix_ids", "completion_ids"), _ids),
    **dict.fromkeys(
        ("problem_id", "task", "cut", "text", "tokenizer", "policy", "policy_run", "verifier", "environment"), _text
    ),
    **dict.fromkeys(("seed", "policy_step", "max_new_tokens"), _whole),
    **dict.fromkeys(("reward", "flops", "temperature"), _number),
    **dict.fromkeys(("success", "reencoded"), _flag),
    "logp_gen": _log_probs,
    "stop_reason": _stop_reason,
    "turns": _turns,
}

TURN_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("start", "end", "num_calls", "num_errors"), _whole),
    **dict.fromkeys(("success", "is_invalid"), _flag),
    "reward": _number,
}
