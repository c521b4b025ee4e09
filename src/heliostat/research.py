"""One update at a time, for studies of an update itself: sample, score, step and evaluate, without the loop of a run.

    with open_experiment("demo") as experiment:
        for index in range(20):
            groups = experiment.sample(experiment.problems(index, 8), seed=index)
            step = experiment.step(groups, seed=index)
            print(step.metrics["reward/mean"], experiment.mirror_metrics(step)["policy/lambda_hat"])
        print(experiment.evaluate().pass_at_1)

An experiment has no run folder, no guard and no checkpoints, and works in one process. ``post_train`` has all of these.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.arguments import PathArg, as_path
from heliostat.cards import Card
from heliostat.config import ConfigError, Recipe, build_recipe, load_recipe
from heliostat.models import LoadedModel
from heliostat.rollout import SampleRequest, SamplingSettings
from heliostat.tasks import Task, VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.builders import make_updater
from heliostat.train.checks.recipe import check_recipe, load_tasks
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.demonstrations import demonstration
from heliostat.train.distributed.ranks import Runtime, start_runtime
from heliostat.train.episodes import with_episodes
from heliostat.train.evaluation.charged import evaluate_charged
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.judges.episodes import about_episodes
from heliostat.train.judges.opening import open_judge
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import Anchor, score, score_rows
from heliostat.train.model_bundle import ModelBundle, load_reference, set_up_model
from heliostat.train.teachers.opening import open_teacher
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.mirror_metrics import mirror_means, rollout_means, sequence_log_ratios
from heliostat.train.update.safe_step import TrainingDiverged
from heliostat.train.update.updater import Updater, UpdateReport
from heliostat.types import Batch, Group, Problem, Prompt, TrainingGroup, mean_values

__all__ = ["Experiment", "Step", "TrainingDiverged", "open_experiment"]


@dataclass(frozen=True, slots=True, repr=False)
class Step(Card):
    """One update phase of an experiment.

    Attributes:
        batch: the groups with their advantages, and their anchor where one was given.
        report: counts, losses and gradient norms of the phase.
    """

    batch: Batch
    report: UpdateReport

    @property
    def metrics(self) -> dict[str, float]:
        """Return the means over rollouts and updates, by the keys of ``metrics.jsonl``."""
        of_updates = {"optim/lr": self.report.lr, "optim/bad_steps": float(self.report.bad_steps)}
        return self.rollout_metrics | mean_values(self.report.means) | of_updates

    @property
    def rollout_metrics(self) -> dict[str, float]:
        """Return the means over rollouts alone."""
        return mean_values(rollout_means([group.group for group in self.batch.groups]))


@dataclass(kw_only=True, slots=True, repr=False)
class Experiment(Card):
    """A model in memory with its tasks, verifiers, objective and optimizer.

    Attributes:
        opened: the recipe that the experiment was opened with.
        recipe: the recipe that ``updater`` was built from; see ``restart``.
        updater: applies the objective; its ``policy``, ``objective`` and ``reference`` may be replaced between steps.
        ledger: FLOPs of everything that the experiment has computed, by phase.
        num_updates: optimizer steps since the last ``restart``, the position in the learning-rate schedule.
    """

    opened: Recipe
    recipe: Recipe
    tasks: Sequence[Task]
    bundle: ModelBundle
    pool: VerifierPool
    runtime: Runtime
    updater: Updater
    ledger: Ledger = field(default_factory=Ledger)
    num_updates: int = 0

    @property
    def loaded(self) -> LoadedModel:
        """Return the model with its tokenizer."""
        return self.bundle.loaded

    @property
    def policy(self) -> Policy:
        """Return the policy being trained: token log-probabilities with gradient."""
        return self.updater.policy

    @property
    def train(self) -> list[Problem]:
        """Return the training problems of all tasks."""
        return [problem for task in self.tasks for problem in task.train]

    @property
    def heldout(self) -> list[Problem]:
        """Return the held-out problems of all tasks."""
        return [problem for task in self.tasks for problem in task.heldout]

    def problems(self, index: int, num: int, *, seed: int | None = None) -> list[Problem]:
        """Return batch ``index`` of ``num`` training problems: shuffled epochs, as a run draws them.

        Args:
            seed: of the shuffling. Default: ``run.seed``.
        """
        return ShuffledEpochs(self.train, self.recipe.run.seed if seed is None else seed).next(index, num)

    # -- one step -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        problems: Sequence[Problem | Prompt],
        num_samples: int | None = None,
        *,
        seed: int,
        settings: SamplingSettings | None = None,
    ) -> list[Group]:
        """Sample completions of each problem with the current weights, and verify them.

        Args:
            problems: a ``Prompt`` among them is encoded already, and may begin its completions with a prefix.
            num_samples: completions a problem. Default: ``rollout.group_size``.
            seed: of the completions; the same seed, weights and problem give the same completion.
            settings: Default: the policy's temperature, and no truncation of the distribution.
        """
        prompts = [one if isinstance(one, Prompt) else self.bundle.prompt(one) for one in problems]
        settings = settings or SamplingSettings(temperature=self.policy.temperature)
        size = num_samples or self.recipe.rollout.group_size
        request = SampleRequest(prompts, size, settings, seed=seed, policy_step=self.num_updates)
        with self.ledger.phase("rollout"):
            groups = self.bundle.engine.sample(request)
        self.ledger.charge_rollout("rollout", self.loaded, self.bundle.engine.take_counts())
        with self.ledger.phase("verify"):
            return self.pool.verify([group for group in groups if not group.is_empty])

    def score(self, groups: Sequence[Group], policy: Policy | None = None) -> list[Anchor]:
        """Return ``log pi(y_t | x, y_<t)`` of every token: by group, one float tensor ``[tokens]`` a completion.

        Args:
            policy: Default: the policy being trained, at the current weights.

        **Limits** Under the weights that sampled, the result equals ``Completion.logp_gen`` up to rounding.
        """
        rows = [TrainingGroup(group, torch.zeros(len(group.completions))) for group in groups]
        counts = UpdateCounts()
        scored = score(policy or self.policy, rows, self.recipe.train.tokens_per_microbatch, counts.add)
        self.ledger.charge_update("update", self.loaded, counts, with_gradient=False)
        return scored

    def score_solutions(self, problems: Sequence[Problem]) -> list[Float[Tensor, " token"]]:
        """Return the log-probability of every token of each problem's solution, its end token included.

        A measurement at temperature 1, not charged to the ledger. Where only one text is right, the exponential of a
        tensor's sum is the success rate.

        Raises:
            ValueError: a problem has no solution.

        **Limits** The exponential of a sum is the share of samples that equal the solution, in expectation.
        """
        rows = [self._solution(number, problem) for number, problem in enumerate(problems)]
        policy = Policy(self.loaded, temperature=1.0, shared_prompt=False)
        return score_rows(policy, rows, self.recipe.train.tokens_per_microbatch, lambda part, shared: None)

    def _solution(self, number: int, problem: Problem) -> Row:
        if problem.solution is None:
            raise ValueError(f"{problem.described} has no solution to score")
        row = demonstration(self.loaded, self.bundle.prompt(problem), problem.solution)
        return dataclasses.replace(row, group=number)

    def step(
        self,
        groups: Sequence[Group],
        *,
        seed: int,
        logp_old: Sequence[Anchor] | None = None,
        advantages: Sequence[Float[Tensor, " completion"]] | None = None,
        shuffle: bool = True,
    ) -> Step:
        """Make one update phase of ``train.updates_per_step`` optimizer steps on verified groups.

        Args:
            seed: of the order in which groups meet in minibatches.
            logp_old: by group, the anchor's log-probabilities, where the weights have moved since the groups were
                sampled. Default: the anchor is the policy at the current weights.
            advantages: by group, in place of the objective's own.
            shuffle: ``False`` divides the groups into minibatches in the given order.

        Raises:
            ConfigError: the objective compares with a reference policy, and ``updater.reference`` is ``None``.
            TrainingDiverged: ``train.max_bad_steps`` steps in a row had a loss or gradient that is not finite.

        **Limits** With the problems, seeds and recipe of a run's step, the weights afterwards are that run's, bit for
        bit.
        """
        if self.updater.objective.needs_reference and self.updater.reference is None:
            raise ConfigError(
                f"objective '{self.recipe.objective.name}' compares with a frozen reference policy; set "
                "experiment.updater.reference = experiment.frozen(folder of a model), or choose another objective"
            )
        batch = self.updater.make_batch(groups, logp_old)
        if advantages is not None:
            pairs = zip(batch.groups, advantages, strict=True)
            batch = Batch(tuple(dataclasses.replace(group, advantages=given) for group, given in pairs))
        num_updates = self.recipe.train.updates_per_step
        with self.ledger.phase("update"):
            report = self.updater.run(batch, num_updates, self.num_updates, seed, shuffle=shuffle)
        self.num_updates += num_updates
        teacher = self.updater.teacher
        self.ledger.charge_phase(self.loaded, report, None if teacher is None else teacher.loaded)
        return Step(batch, report)

    def mirror_metrics(self, step: Step, num_groups: int | None = None) -> dict[str, float]:
        """Measure how far the mirror step went, on the first ``num_groups`` groups of its own batch.

        The keys are those of ``metrics.jsonl`` (``policy/lambda_hat``, ``policy/chi_square``, ``policy/solved``, ...).
        The anchor is the sampler's own log-probability.
        """
        count = len(step.batch.groups) if num_groups is None else num_groups
        budget = self.recipe.train.tokens_per_microbatch
        scored = sequence_log_ratios(self.policy, step.batch, count, budget, self.runtime)
        metrics = mean_values(mirror_means(*scored, tau=self.updater.objective.regression_tau))
        return metrics | {"policy/max_log_ratio": float(abs(scored[0]).max(initial=0.0))}

    def evaluate(
        self, problems: Sequence[Problem] | None = None, num_samples: int | None = None, *, greedy: bool = True
    ) -> Evaluation:
        """Evaluate the current weights, always with the same random streams.

        Args:
            problems: Default: all held-out problems.
            num_samples: completions a problem. Default: ``eval.final_samples``.
        """
        result, _ = evaluate_charged(
            self.bundle,
            self.pool,
            self.runtime,
            self.ledger,
            self.heldout if problems is None else problems,
            num_samples or self.recipe.eval.final_samples,
            greedy=greedy,
        )
        return result

    def frozen(self, path: PathArg) -> Policy:
        """Load another model as a policy without gradient: a reference for the objective, or a model to score with.

        Args:
            path: as ``model.path`` in a recipe.
        """
        return load_reference(self.recipe, as_path(path), self.runtime, self.loaded.model.dtype)

    # -- starting again -----------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the model's weights, to be given to ``restart``."""
        return {name: tensor.detach().clone() for name, tensor in self.loaded.model.state_dict().items()}

    def restart(self, weights: Mapping[str, torch.Tensor], overrides: Mapping[str, Any] | Sequence[str] = ()) -> None:
        """Load weights, and build a new updater with a fresh optimizer and ledger.

        Args:
            weights: from ``weights()``.
            overrides: settings that differ from those the experiment was opened with, ``{"objective.tau": 0.5}``. The
                model and the tasks stay as they are.

        Raises:
            ConfigError: an override is wrong, or would need another model or task.
        """
        recipe = build_recipe(self.opened.model_dump(mode="json"), overrides)
        for section in ("model", "lora", "task", "distributed"):
            if getattr(recipe, section) != getattr(self.recipe, section):
                raise ConfigError(
                    f"[{section}] cannot change in a running experiment; open another with these settings"
                )
        self.loaded.model.load_state_dict(weights)
        self.bundle = dataclasses.replace(self.bundle, recipe=recipe)
        self.recipe, self.ledger, self.num_updates = recipe, Ledger(), 0
        teacher = open_teacher(recipe, self.bundle, self.runtime, self.train)
        self.updater = make_updater(recipe, self.bundle, check_recipe(recipe), self.runtime, teacher)
        self.bundle.engine.take_counts()


@contextmanager
def open_experiment(
    recipe: PathArg | Recipe, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> Iterator[Experiment]:
    """Load the tasks and the model of a recipe, start its verifiers, and yield an ``Experiment``.

    Args:
        recipe: a shipped recipe's name, a TOML path, or a ``Recipe``. Its warm start is not run: train one with
            ``heliostat.sft`` and set ``model.path`` to the result.
        overrides: settings by dotted key, ``{"objective.tau": 0.5}``, or command-line words.

    Raises:
        ConfigError: the recipe is wrong.
    """
    if isinstance(recipe, Recipe):
        checked = build_recipe(recipe.model_dump(mode="json"), overrides)
    else:
        checked = load_recipe(recipe, overrides)
    objective = check_recipe(checked)
    runtime = start_runtime(checked.run)
    tasks = load_tasks(checked)
    bundle = set_up_model(checked, runtime)
    teacher = open_teacher(checked, bundle, runtime, [problem for task in tasks for problem in task.train])
    updater = make_updater(checked, bundle, objective, runtime, teacher)
    with VerifierPool(tasks, environment_of(checked.environment)) as pool:
        bundle = with_episodes(bundle, pool.environments, warnings.warn)
        pool.judging = about_episodes(open_judge(checked, tasks, runtime), bundle)
        yield Experiment(
            opened=checked, recipe=checked, tasks=tasks, bundle=bundle, pool=pool, runtime=runtime, updater=updater
        )
