"""Evaluation of one model, or of two on the same held-out problems."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heliostat.arguments import PathArg, as_text, paths
from heliostat.cards import Card, table
from heliostat.config import Recipe
from heliostat.nested_runs import refuse_nested
from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.tasks import Task, VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.train.checks.encoding import check_encodable
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.episodes import with_episodes
from heliostat.train.evaluation.evaluate import Comparison, Evaluation, compare, evaluate
from heliostat.train.judges.episodes import about_episodes
from heliostat.train.judges.opening import open_judge
from heliostat.train.model_bundle import set_up_sampler, with_model
from heliostat.types import Problem


@dataclass(frozen=True, slots=True, repr=False)
class EvalReport(Card):
    """The held-out results of one model, or of two on the same problems.

    Attributes:
        dtypes: dtype of each model's weights.
    """

    models: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    comparison: Comparison | None
    dtypes: tuple[str, ...]

    def card_line(self) -> str:
        several = zip(self.models, self.evaluations, strict=True)
        return "; ".join(f"{model}: pass@1 {result.described}" for model, result in several)

    def _repr_html_(self) -> str:
        rows = [
            (model, task, part.described, str(len(part.results)))
            for model, result in zip(self.models, self.evaluations, strict=True)
            for task, part in result.by_task().items()
        ]
        note = ""
        if (pair := self.comparison) is not None:
            low, high = pair.ci95
            note = f"second minus first: {pair.difference:+.1%} pass@1, 95% interval [{low:+.1%}, {high:+.1%}]"
        return table(("model", "task", "pass@1 [95%]", "problems"), rows, note)

    def to_json(self) -> str:
        """Encode the report as JSON."""
        content = {
            "models": [
                {"model": model, "dtype": dtype, **result.summary(), "tasks": _by_task(result)}
                for model, dtype, result in zip(self.models, self.dtypes, self.evaluations, strict=True)
            ],
            "comparison": None
            if self.comparison is None
            else {
                "difference": self.comparison.difference,
                "ci95": list(self.comparison.ci95),
                "num_problems": self.comparison.num_problems,
                "num_only_first": self.comparison.num_only_first,
                "num_only_second": self.comparison.num_only_second,
                "significant": self.comparison.significant,
            },
        }
        return json.dumps(content, indent=1)


def _by_task(result: Evaluation) -> dict[str, Any]:
    return {task: part.summary() for task, part in result.by_task().items()}


def run_eval(
    models: PathArg | Iterable[PathArg],
    recipe: Recipe,
    *,
    num_problems: int | None = None,
    num_samples: int | None = None,
    greedy: bool = True,
    settings: SamplingSettings | None = None,
) -> EvalReport:
    """Evaluate one or two models on the recipe's held-out problems, with the same random streams for both."""
    refuse_nested("an evaluation")
    runtime = start_runtime(recipe.run)
    tasks = load_tasks(recipe)
    heldout = [problem for task in tasks for problem in task.heldout][:num_problems]
    evaluations, dtypes = [], []
    names = [as_text(model) for model in paths(models)]
    with VerifierPool(tasks, environment_of(recipe.environment)) as pool:
        judging = None if all(task.verifiers for task in tasks) else open_judge(recipe, tasks, runtime)
        for path in names:
            bundle = set_up_sampler(with_model(recipe, path), runtime)
            bundle = with_episodes(bundle, pool.environments, warnings.warn)
            pool.judging = about_episodes(judging, bundle)
            check_encodable(recipe, [_only(task, heldout) for task in tasks], bundle)
            evaluation, _ = evaluate(
                bundle.engine,
                pool,
                [bundle.prompt(problem) for problem in heldout],
                num_samples or recipe.eval.final_samples,
                settings or SamplingSettings(temperature=recipe.rollout.temperature),
                runtime,
                seed=completion_seed(recipe.run.seed, "evaluation"),
                greedy=greedy,
            )
            evaluations.append(evaluation)
            dtypes.append(str(bundle.loaded.model.dtype).removeprefix("torch."))
    comparison = compare(*evaluations) if len(evaluations) == 2 else None
    return EvalReport(tuple(names), tuple(evaluations), comparison, tuple(dtypes))


def _only(task: Task, heldout: Sequence[Problem]) -> Task:
    """Restrict a task to its evaluated problems."""
    evaluated = {problem.problem_id for problem in heldout}
    return replace(task, train=(), heldout=tuple(one for one in task.heldout if one.problem_id in evaluated))
