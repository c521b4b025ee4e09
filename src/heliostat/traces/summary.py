"""Summarise a bank: counts by task and sampler, and attempts per solved problem.

Left out: checking the file (``checking``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.cards import Card
from heliostat.traces.bank import Bank
from heliostat.traces.checking import whole_traces
from heliostat.traces.row_issues import RowIssues

BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Bin:
    """Problems whose first success came within ``most`` attempts, but not within half as many."""

    most: int
    num_problems: int


@dataclass(frozen=True, slots=True, repr=False)
class BankSummary(Card):
    """The counts over a whole bank.

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

    def card_line(self) -> str:
        counts = f"{self.num_traces:,} traces of {self.num_problems:,} problems, {self.num_successes:,} successes"
        return (
            f"{counts}; {self.num_attempts:,} attempts on {self.num_tried:,} problems, {self.num_unsolved:,} unsolved"
        )

    def card_rows(self) -> list[tuple[str, str]]:
        return [
            ("traces", f"{self.num_traces:,} of {self.num_problems:,} problems, {self.num_successes:,} successes"),
            *(
                (f"task {task}", f"{problems:,} problems, {traces:,} traces, {won:,} successes")
                for task, problems, traces, won in self.tasks
            ),
            ("attempts", f"{self.num_attempts:,} on {self.num_tried:,} problems, {self.num_unsolved:,} unsolved"),
            *((f"solved within {one.most:,} attempts", f"{one.num_problems:,} problems") for one in self.attempts),
            ("FLOPs of sampling", f"{self.flops:.3g}"),
        ]


def summarise(bank: Bank, issues: RowIssues | None = None) -> BankSummary:
    """Count intact traces; damaged ones are reported in ``issues``.

    Raises:
        BankError: the record of attempts is damaged, or a trace, and there are no ``issues`` to tell.
    """
    tasks: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    samplers: dict[tuple[str, str, bool], list[int]] = defaultdict(lambda: [0, 0])
    problems: dict[str, set[str]] = defaultdict(set)
    for trace in bank if issues is None else whole_traces(bank, issues):
        source = trace.source
        problems[trace.task].add(trace.problem_id)
        for counts in (tasks[trace.task], samplers[source.run, source.verifier, source.reencoded]):
            counts[0] += 1
            counts[1] += trace.success
    tried: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    flops = 0.0
    for one in bank.attempts():
        tried[one.campaign, one.problem_id][0] += one.num
        tried[one.campaign, one.problem_id][1] += one.num_success
        flops += one.flops
    solved = [num / successes for num, successes in tried.values() if successes]
    return BankSummary(
        num_traces=sum(num for num, _ in tasks.values()),
        num_problems=sum(map(len, problems.values())),
        num_successes=sum(successes for _, successes in tasks.values()),
        tasks=tuple((task, len(problems[task]), num, won) for task, (num, won) in sorted(tasks.items())),
        samplers=tuple((run, num, won, by, again) for (run, by, again), (num, won) in sorted(samplers.items())),
        attempts=histogram(solved),
        num_tried=len(tried),
        num_unsolved=len(tried) - len(solved),
        num_attempts=sum(num for num, _ in tried.values()),
        flops=flops,
    )


def histogram(attempts: Sequence[float]) -> tuple[Bin, ...]:
    """Count attempts per success in bins that double; empty bins at both ends are omitted."""
    counts = [sum(low < value <= high for value in attempts) for low, high in zip((0, *BINS), BINS, strict=False)]
    counts.append(sum(value > BINS[-1] for value in attempts))
    bins = [Bin(most, num) for most, num in zip((*BINS, 2 * BINS[-1]), counts, strict=True)]
    used = [index for index, one in enumerate(bins) if one.num_problems]
    return tuple(bins[used[0] : used[-1] + 1]) if used else ()
