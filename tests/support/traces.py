"""Traces made by rule, so that what a test reads back can be recomputed."""

from dataclasses import replace

import numpy as np

from heliostat.traces import Trace, TraceSource

SOURCE = TraceSource("tok", policy="weights", run="first", step=3, temperature=0.7, max_new_tokens=8, verifier="exact")


def make_trace(number: int = 0, *, problem: int | None = None, success: bool = True, **changes: object) -> Trace:
    """Trace ``number`` of a fixed list; equal numbers, equal traces."""
    length = 1 + number % 5
    trace = Trace(
        problem_id=f"sums/{number % 7 if problem is None else problem}",
        task="sums",
        prompt_ids=(1, 2, 3 + number % 7),
        completion_ids=tuple(10 + (number + position) % 400 for position in range(length)),
        reward=float(success),
        success=success,
        source=SOURCE,
        text=f"text {number} é",
        logp_gen=-np.arange(1, length + 1, dtype=np.float32) / 7,
        seed=number + 1,
        flops=1e6 + number,
    )
    return replace(trace, **changes)


def same(one: Trace, other: Trace) -> bool:
    """Equality of everything, log-probabilities bit for bit."""
    return np.asarray(one.logp_gen, np.float32).tobytes() == np.asarray(
        other.logp_gen, np.float32
    ).tobytes() and replace(one, logp_gen=()) == replace(other, logp_gen=())
