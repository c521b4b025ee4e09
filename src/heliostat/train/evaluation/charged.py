"""Evaluation of a recipe's problems under the current weights, charged to a ledger.

Left out: counting successes (``evaluate``), and writing results down (``heldout``).
"""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.evaluation.evaluate import Evaluation, evaluate
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Group, Problem


def evaluate_charged(
    bundle: ModelBundle,
    pool: VerifierPool,
    runtime: Runtime,
    ledger: Ledger,
    problems: Sequence[Problem],
    num_samples: int,
    *,
    greedy: bool,
) -> tuple[Evaluation, list[Group]]:
    """Evaluate problems with the same random streams at every call, and charge the work as evaluation.

    Returns:
        The evaluation, and the verified groups of sampled completions.
    """
    recipe = bundle.recipe
    with ledger.phase("eval"):
        result = evaluate(
            bundle.engine,
            pool,
            [bundle.prompt(problem) for problem in problems],
            num_samples,
            SamplingSettings(temperature=recipe.rollout.temperature),
            runtime,
            seed=completion_seed(recipe.run.seed, "evaluation"),
            greedy=greedy,
        )
    ledger.charge_sampling("eval", bundle.loaded, bundle.engine, runtime)
    ledger.charge_judge("eval", pool, runtime)
    return result
