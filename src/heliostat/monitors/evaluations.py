"""An evaluation before training as signals, so that conditions read it like a training step.

    reward/zero_signal    1 where every problem earned the same and was solved always or never, else 0: results are
                          stored per problem, without the reward of each sample

Left out: evaluating (``train.evaluation.evaluate``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol


class Result(Protocol):
    """The results of one problem's samples."""

    @property
    def num_samples(self) -> int: ...
    @property
    def num_success(self) -> int: ...
    @property
    def mean_reward(self) -> float | None: ...
    @property
    def num_failures(self) -> int: ...
    @property
    def num_cut(self) -> int: ...
    @property
    def max_length(self) -> int: ...


def evaluation_signals(results: Sequence[Result]) -> dict[str, float]:
    """Compute shares over all samples, the mean reward, and the longest completion.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("an evaluation without problems has no signals")
    count = sum(result.num_samples for result in results)
    rewards = [math.nan if result.mean_reward is None else result.mean_reward for result in results]
    alike = all(math.isclose(reward, rewards[0], rel_tol=1e-9, abs_tol=1e-12) for reward in rewards)
    decided = all(result.num_success in (0, result.num_samples) for result in results)
    signals = {
        "eval/problems": float(len(results)),
        "reward/completions": float(count),
        "reward/success": sum(result.num_success for result in results) / count,
        "reward/mean": sum(reward * r.num_samples for reward, r in zip(rewards, results, strict=True)) / count,
        "reward/zero_signal": float(alike and decided),
        "reward/failures": float(sum(result.num_failures for result in results)),
    }
    longest = max(result.max_length for result in results)
    if longest:  # 0: the evaluation did not record lengths
        signals |= {"length/max": float(longest), "length/truncated": sum(r.num_cut for r in results) / count}
    return signals
