"""The guard's panel: the same held-out problems with the same random streams, sampled and scored periodically.

    sampled and greedy answers -> pass@1, pass@k, greedy
    worked solutions, scored   -> calibration; not in an environment, where a solution has several turns
    8 answers x 8 prompts      -> information of an answer about its prompt

Sampling is charged to the compute ledger as evaluation; scoring passes are not charged.

Left out: formulas (``monitors.panel``), and the results of a run, which are its evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from heliostat.models import LoadedModel, encode_solution
from heliostat.monitors.panel import calibration_gap, prompt_information
from heliostat.rollout import Engine, SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.evaluation.evaluate import evaluate
from heliostat.train.logprobs.packing import Row, microbatches
from heliostat.train.logprobs.policy import Policy
from heliostat.train.run_context import RunContext
from heliostat.train.update.updater import Updater
from heliostat.types import Completion, Group, Prompt, StopReason

NUM_CROSSED = 8
"""Number of answers, and of prompts that each of them is scored under."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of fixed problems with fixed seeds.

    Attributes:
        temperature: of the samples; greedy answers are sampled as well.
        scores_solutions: whether calibration on the problems' worked solutions is measured.
    """

    prompts: Sequence[Prompt]
    num_samples: int
    temperature: float
    seed: int
    tokens_per_microbatch: int
    scores_solutions: bool = True

    def measure(self, engine: Engine, pool: VerifierPool, policy: Policy, runtime: Runtime) -> dict[str, float]:
        """Measure the panel's metrics with the current weights."""
        settings = SamplingSettings(temperature=self.temperature)
        result, groups = evaluate(
            engine, pool, self.prompts, self.num_samples, settings, runtime, seed=self.seed, greedy=True
        )
        metrics = {
            "panel/pass@1": result.pass_at_1,
            "panel/reward": result.mean_reward,
            "panel/pass@k": result.pass_at(self.num_samples),
            "panel/greedy": float(result.greedy or 0.0),
        }
        if len(groups) >= NUM_CROSSED:
            metrics["panel/information"] = prompt_information(self.crossed(policy, groups[:NUM_CROSSED]))
        return metrics | (self._calibration(policy, groups) if self.scores_solutions else {})

    @torch.no_grad()
    def _calibration(self, policy: Policy, groups: Sequence[Group]) -> dict[str, float]:
        rows = [row for index, prompt in enumerate(self.prompts) if (row := _solution(policy.loaded, prompt, index))]
        if not rows:
            return {}
        logp, entropy = [], []
        for part in microbatches(rows, self.tokens_per_microbatch, policy.padded_tokens):
            logp.append(policy.log_probs(part).double().cpu().numpy())
            entropy.append(policy.entropies(part).double().cpu().numpy())
        surprisal = -np.concatenate(logp)
        own = np.concatenate([completion.entropy for group in groups for completion in group.completions])
        return {
            "panel/calibration": calibration_gap(np.concatenate(entropy), -surprisal),
            "panel/calibration_own": float(own.mean(dtype=np.float64) - surprisal.mean()),
        }

    @torch.no_grad()
    def crossed(self, policy: Policy, groups: Sequence[Group]) -> Float[np.ndarray, "answer prompt"]:
        """Compute ``log p(y_i | x_j)`` of the first answer of each group under each group's prompt."""
        rows = [
            Row(j, other.prompt, group.completions[0], 0.0, None) for j, other in enumerate(groups) for group in groups
        ]
        summed: dict[int, float] = {}
        for part in microbatches(rows, self.tokens_per_microbatch, policy.padded_tokens):
            pieces = torch.split(policy.log_probs(part).double().cpu(), [row.num_tokens for row in part])
            summed |= {id(row): float(piece.sum()) for row, piece in zip(part, pieces, strict=True)}
        size = len(groups)
        return np.asarray([[summed[id(rows[j * size + i])] for j in range(size)] for i in range(size)])


def panel_of(context: RunContext, updater: Updater) -> Callable[[], dict[str, float]]:
    """Build the measurement of a run's panel with the current weights, charged to its ledger as evaluation."""
    recipe, bundle, ledger = context.recipe, context.bundle, context.ledger
    panel = Panel(
        [bundle.prompt(problem) for problem in context.heldout_problems[: recipe.guard.panel_problems]],
        recipe.guard.panel_samples,
        recipe.rollout.temperature,
        completion_seed(recipe.run.seed, "panel"),
        recipe.train.tokens_per_microbatch,
        scores_solutions=not recipe.environment.enabled,
    )
    if recipe.guard.mode != "off" and recipe.guard.panel_every and not panel.scores_solutions:
        context.display.note(
            "the guard's panel plays whole episodes and leaves calibration out: "
            "a worked solution in one turn is no answer in an environment"
        )

    def measure() -> dict[str, float]:
        with ledger.phase("eval"):
            metrics = panel.measure(bundle.engine, context.pool, updater.policy, context.runtime)
        ledger.charge_sampling("eval", bundle.loaded, bundle.engine, context.runtime)
        ledger.charge_judge("eval", context.pool, context.runtime)
        return metrics

    return measure


def _solution(loaded: LoadedModel, prompt: Prompt, index: int) -> Row | None:
    """Build the row that scores a prompt's worked solution, or else its answer; ``None`` without either."""
    problem = prompt.problem
    text = problem.solution if problem.solution is not None else problem.answer
    if text is None:
        return None
    ids = encode_solution(loaded, prompt, text)
    zeros = np.zeros(len(ids), dtype=np.float32)
    return Row(index, prompt, Completion(ids, zeros, zeros, StopReason.EOS, text), 0.0, None)
