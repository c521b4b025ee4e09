"""Success of a model on held-out problems, with intervals.

Problems are the unit of resampling, since completions of one problem are not independent evidence about the next. Two
models are compared on the same problems, pair by pair.

Left out: the construction of problems and verifiers (``tasks``), and pages (``report``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from heliostat.cards import Card, table
from heliostat.rollout import Engine, SampleRequest, SamplingSettings
from heliostat.statistics import pass_at_k, success_change, success_rate
from heliostat.tasks import VerifierPool
from heliostat.train.distributed.ranks import Runtime
from heliostat.types import Group, Prompt


@dataclass(frozen=True, slots=True, repr=False)
class ProblemResult(Card):
    """The outcome of one problem: successes of its sampled completions and of the greedy one.

    Attributes:
        num_failures: samples on which a verifier failed.
        num_cut: samples that reached the token budget or the context window.
        max_length: tokens of the longest sample; 0 in rows of versions that did not record it.
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
        """The share of successful samples."""
        return self.num_success / self.num_samples


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Card):
    """The results on a set of problems."""

    results: tuple[ProblemResult, ...]

    def card_line(self) -> str:
        if not self.results:
            return "no problems"
        return f"pass@1 {self.described}, {len(self.results)} problems"

    def _repr_html_(self) -> str:
        rows = [(task, part.described, str(len(part.results))) for task, part in self.by_task().items()]
        return table(("task", "pass@1 [95%]", "problems"), rows)

    @property
    def described(self) -> str:
        """Pass@1 with its interval, as text."""
        low, high = self.ci95
        return f"{self.pass_at_1:.1%} [{low:.1%}, {high:.1%}]"

    @property
    def rates(self) -> Float[np.ndarray, " problem"]:
        return np.asarray([result.rate for result in self.results])

    @property
    def pass_at_1(self) -> float:
        return float(self.rates.mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95% interval of pass@1 over problems."""
        estimate = success_rate(self.rates)
        return estimate.low, estimate.high

    @property
    def mean_reward(self) -> float:
        return float(np.mean([result.mean_reward for result in self.results]))

    @property
    def greedy(self) -> float | None:
        """The greedy success rate; ``None`` without greedy completions."""
        flags = [result.greedy_success for result in self.results if result.greedy_success is not None]
        return float(np.mean(flags)) if flags else None

    def pass_at(self, k: int) -> float:
        """Average the unbiased pass@k over problems."""
        return float(np.mean([pass_at_k(result.num_samples, result.num_success, k) for result in self.results]))

    @property
    def ks(self) -> list[int]:
        """The powers of two up to the number of samples."""
        most = min(result.num_samples for result in self.results)
        return [2**power for power in range(most.bit_length()) if 2**power <= most]

    def by_task(self) -> dict[str, Evaluation]:
        """Split the evaluation by task."""
        tasks = dict.fromkeys(result.task for result in self.results)
        return {task: Evaluation(tuple(r for r in self.results if r.task == task)) for task in tasks}

    def summary(self) -> dict[str, object]:
        """Summarise the evaluation for ``summary.json``."""
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
        """Return the metrics for ``metrics.jsonl``."""
        low, high = self.ci95
        values = {
            "eval/pass@1": self.pass_at_1,
            "eval/pass@1_low": low,
            "eval/pass@1_high": high,
            "eval/pass@k": self.pass_at(self.ks[-1]),
            "eval/reward": self.mean_reward,
        }
        return values if self.greedy is None else values | {"eval/greedy": self.greedy}


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Card):
    """The difference of two models on the same problems, second minus first.

    Attributes:
        num_only_first, num_only_second: problems that one model solved in some sample and the other in none.
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
    """Compare two evaluations by the paired difference of pass@1, with its interval over the shared problems.

    Raises:
        ValueError: the evaluations share no problem.
    """
    rates = {result.problem_id: result.rate for result in second.results}
    pairs = [(result.rate, rates[result.problem_id]) for result in first.results if result.problem_id in rates]
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
    """Sample and verify completions of all prompts, each rank its share; the results are the same on every rank.

    Returns:
        The evaluation, and the verified groups of sampled completions (for transcripts).
    """
    mine = runtime.shard_prompts(prompts)
    greedy_groups: list[Group] = []
    with runtime.raise_on_all_ranks():
        groups = pool.verify(engine.sample(SampleRequest(mine, num_samples, settings, seed=seed, policy_step=0)))
        if greedy:
            request = SampleRequest(mine, 1, SamplingSettings(temperature=0), seed=seed, policy_step=0)
            greedy_groups = pool.verify(engine.sample(request))
    groups = [group for group in runtime.gather_groups(prompts, groups) if not group.is_empty]
    greedy_success: Mapping[str, bool] = {}
    if greedy:
        greedy_groups = runtime.gather_groups(prompts, greedy_groups)
        greedy_success = {
            group.prompt.problem.problem_id: group.verdicts[0].success for group in greedy_groups if group.verdicts
        }
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
            max_length=max(completion.num_sampled for completion in group.completions),
        )
        for group in groups
    )
    return Evaluation(results), groups
