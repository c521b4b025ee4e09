"""How good a model is on held-out problems, and how sure we can be.

Problems are the unit of resampling: completions of one problem are not independent evidence about the next. Two models
are compared on the same problems, pair by pair.

Left out: how problems and verifiers are made (``tasks``), and pages (``report``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from heliostat.rollout import Engine, SampleRequest, SamplingSettings
from heliostat.statistics import pass_at_k, success_change, success_rate
from heliostat.tasks import VerifierPool
from heliostat.train.distributed.ranks import Runtime
from heliostat.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """One problem's outcome: how many of its sampled completions succeeded, and whether the greedy one did.

    Attributes:
        num_failures: samples on which a verifier failed; ``num_cut`` reached the token budget or the context window.
        max_length: tokens of the longest sample; 0 in rows of a version that did not keep it.
    """

    task: str
    problem_id: str
    num_samples: int
    num_success: int
    mean_reward: float
    greedy_success: bool | None = None
    num_failures: int = 0
    num_cut: int = 0
    max_length: int = 0

    @property
    def rate(self) -> float:
        """Share of samples that succeeded."""
        return self.num_success / self.num_samples


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results over a set of problems."""

    results: tuple[ProblemResult, ...]

    @property
    def rates(self) -> Float[np.ndarray, " problem"]:
        return np.asarray([result.rate for result in self.results])

    @property
    def pass_at_1(self) -> float:
        return float(self.rates.mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """95% interval of pass@1 over problems."""
        estimate = success_rate(self.rates)
        return estimate.low, estimate.high

    @property
    def mean_reward(self) -> float:
        return float(np.mean([result.mean_reward for result in self.results]))

    @property
    def greedy(self) -> float | None:
        """Greedy success rate, where greedy completions were taken."""
        flags = [result.greedy_success for result in self.results if result.greedy_success is not None]
        return float(np.mean(flags)) if flags else None

    def pass_at(self, k: int) -> float:
        """Mean unbiased pass@k."""
        return float(np.mean([pass_at_k(r.num_samples, r.num_success, k) for r in self.results]))

    @property
    def ks(self) -> list[int]:
        """Powers of two up to the number of samples."""
        most = min(result.num_samples for result in self.results)
        return [2**power for power in range(most.bit_length()) if 2**power <= most]

    def by_task(self) -> dict[str, Evaluation]:
        """One evaluation per task."""
        tasks = dict.fromkeys(result.task for result in self.results)
        return {task: Evaluation(tuple(r for r in self.results if r.task == task)) for task in tasks}

    def summary(self) -> dict[str, object]:
        """For ``summary.json``."""
        return {
            "pass@1": self.pass_at_1,
            "ci95": list(self.ci95),
            "pass@k": {str(k): self.pass_at(k) for k in self.ks},
            "greedy": self.greedy,
            "reward": self.mean_reward,
            "num_problems": len(self.results),
            "num_samples": min(result.num_samples for result in self.results),
        }

    def metrics(self) -> dict[str, float]:
        """For ``metrics.jsonl``."""
        low, high = self.ci95
        values = {
            "eval/pass@1": self.pass_at_1,
            "eval/pass@1_low": low,
            "eval/pass@1_high": high,
            "eval/pass@k": self.pass_at(self.ks[-1]),
            "eval/reward": self.mean_reward,
        }
        return values if self.greedy is None else values | {"eval/greedy": self.greedy}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second model minus first, on the same problems.

    Attributes:
        num_only_first, num_only_second: problems that one of the models solved in some sample, and the other in none.
    """

    difference: float
    ci95: tuple[float, float]
    num_problems: int
    num_only_first: int
    num_only_second: int

    @property
    def significant(self) -> bool:
        """Whether the 95% interval excludes zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Paired difference of pass@1, with its interval over the shared problems, and what one alone solved.

    Raises:
        ValueError: the two share no problem.
    """
    theirs = {result.problem_id: result.rate for result in second.results}
    pairs = [(r.rate, theirs[r.problem_id]) for r in first.results if r.problem_id in theirs]
    if not pairs:
        raise ValueError("the two evaluations share no problem, so they cannot be compared in pairs")
    differences = np.asarray([after - before for before, after in pairs])
    estimate = success_change(differences)
    only_first = sum(before > 0 == after for before, after in pairs)
    only_second = sum(after > 0 == before for before, after in pairs)
    return Comparison(estimate.value, (estimate.low, estimate.high), len(pairs), only_first, only_second)


def evaluate(
    engine: Engine,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    num_samples: int,
    settings: SamplingSettings,
    runtime: Runtime,
    *,
    seed: int,
    greedy: bool = False,
) -> tuple[Evaluation, list[Group]]:
    """Sample, verify and count; every rank does its share, and all know everything.

    Returns:
        The evaluation, and the verified groups of sampled completions (for transcripts).
    """
    mine = runtime.shard_prompts(prompts)
    best: list[Group] = []
    with runtime.raise_on_all_ranks():
        groups = pool.verify(engine.sample(SampleRequest(mine, num_samples, settings, seed=seed, policy_step=0)))
        if greedy:
            coldest = SamplingSettings(temperature=0)
            best = pool.verify(engine.sample(SampleRequest(mine, 1, coldest, seed=seed, policy_step=0)))
    groups = runtime.gather_groups(prompts, groups)
    greedy_success: Mapping[str, bool] = {}
    if greedy:
        best = runtime.gather_groups(prompts, best)
        greedy_success = {group.prompt.problem.problem_id: group.verdicts[0].success for group in best}
    results = tuple(
        ProblemResult(
            task=group.prompt.problem.task,
            problem_id=group.prompt.problem.problem_id,
            num_samples=len(group.completions),
            num_success=sum(verdict.success for verdict in group.verdicts),
            mean_reward=float(np.mean(group.rewards)),
            greedy_success=greedy_success.get(group.prompt.problem.problem_id),
            num_failures=sum(bool(verdict.failure) for verdict in group.verdicts),
            num_cut=sum(completion.stop_reason.truncated for completion in group.completions),
            max_length=max(len(completion.token_ids) for completion in group.completions),
        )
        for group in groups
    )
    return Evaluation(results), groups
