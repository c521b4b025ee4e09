"""What is in a bank: counts by task and sampler, and how many attempts solved problems took.

Left out: whether it is sound (``checking``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.traces.bank import Bank

BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Bin:
    """Problems whose first success came within ``most`` attempts, but not within half as many."""

    most: int
    num_problems: int


@dataclass(frozen=True, slots=True)
class BankSummary:
    """Counts over a whole bank.

    Attributes:
        tasks: by task: problems, traces, successes.
        samplers: by run, step range aside: traces, successes, the verifier that judged, whether re-encoded.
        attempts: histogram of attempts per solved problem; ``unsolved`` of those tried had no success yet.
        flops: spent on rejection sampling, unsuccessful attempts included.
    """

    num_traces: int
    num_problems: int
    num_successes: int
    tasks: tuple[tuple[str, int, int, int], ...]
    samplers: tuple[tuple[str, int, int, str, bool], ...]
    attempts: tuple[Bin, ...]
    num_tried: int
    num_unsolved: int
    num_attempts: int
    flops: float


def summarise(bank: Bank) -> BankSummary:
    """Read the bank's counts."""
    tasks = bank.query(
        "SELECT p.task, count(DISTINCT p.id), count(*), sum(t.success) FROM traces t JOIN problems p "
        "ON p.id = t.problem GROUP BY p.task ORDER BY p.task"
    )
    samplers = bank.query(
        "SELECT s.run, count(*), sum(t.success), s.verifier, s.reencoded FROM traces t JOIN sources s "
        "ON s.id = t.source GROUP BY s.run, s.verifier, s.reencoded ORDER BY s.run"
    )
    tried = bank.query(
        "SELECT problem, sum(num), sum(num_success), sum(flops) FROM attempts GROUP BY campaign, problem"
    )
    solved = [num / successes for _, num, successes, _ in tried if successes]
    return BankSummary(
        num_traces=len(bank),
        num_problems=sum(task[1] for task in tasks),
        num_successes=sum(task[3] for task in tasks),
        tasks=tuple((task[0], task[1], task[2], task[3]) for task in tasks),
        samplers=tuple((s[0], s[1], s[2], s[3], bool(s[4])) for s in samplers),
        attempts=histogram(solved),
        num_tried=len(tried),
        num_unsolved=len(tried) - len(solved),
        num_attempts=sum(row[1] for row in tried),
        flops=sum(row[3] for row in tried),
    )


def histogram(attempts: Sequence[float]) -> tuple[Bin, ...]:
    """Attempts per success in bins that double; empty bins at both ends are left out."""
    counts = [sum(low < value <= high for value in attempts) for low, high in zip((0, *BINS), BINS, strict=False)]
    counts.append(sum(value > BINS[-1] for value in attempts))
    bins = [Bin(most, num) for most, num in zip((*BINS, 2 * BINS[-1]), counts, strict=True)]
    used = [index for index, one in enumerate(bins) if one.num_problems]
    return tuple(bins[used[0] : used[-1] + 1]) if used else ()
