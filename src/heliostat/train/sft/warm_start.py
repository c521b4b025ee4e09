"""Supervised steps before post-training: worked solutions of the run's tasks, and what holds a statistic meanwhile.

Left out: the supervised step itself (``updater``), and when it is enough (``train.trainer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from heliostat.config import OptimizerSection, Recipe
from heliostat.optim import Schedule, accumulate_in_float32, build_optimizer
from heliostat.rollout import completion_seed
from heliostat.tasks import Task
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.data.curriculum import Passes
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.model_bundle import Bench
from heliostat.train.sft.feedback import Feedback
from heliostat.train.sft.updater import Demonstrations, SupervisedUpdater
from heliostat.train.update.safe_step import GuardedStep


@dataclass
class WarmStart:
    """The supervised steps of a recipe, each a function of its index and the seed."""

    recipe: Recipe
    bench: Bench
    tasks: Sequence[Task]
    feedback: Feedback
    ledger: Ledger
    runtime: Runtime
    updater: SupervisedUpdater = field(init=False)

    def __post_init__(self) -> None:
        section, train = self.recipe.warm_start, self.recipe.train
        optimizer = build_optimizer(OptimizerSection(name="adamw", lr=section.lr), self.bench.loaded.model)
        accumulate_in_float32(self.bench.loaded.model.parameters())
        self.updater = SupervisedUpdater(
            policy=self.feedback.policy,
            guarded=GuardedStep(optimizer, self.recipe.optimizer.max_grad_norm, train.max_bad_steps),
            schedule=Schedule(
                section.lr, section.num_steps, "cosine", min(20, section.num_steps), section.final_lr_ratio
            ),
            runtime=self.runtime,
            tokens_per_microbatch=train.tokens_per_microbatch,
        )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its own; what it has learned ends with the warm start."""
        return self.updater.guarded.optimizer

    def steps(self, done: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Make the steps after the first ``done``; after each, how many are done and its numbers."""
        section, loaded, seed = self.recipe.warm_start, self.bench.loaded, self.recipe.run.seed
        by_name = {task.name: task for task in self.tasks}
        shown = Demonstrations(loaded, self.recipe.model, by_name, section.num_steps, seed)
        kept = self.tasks[:-1] if self.recipe.feedback.mixes else self.tasks
        problems = [problem for task in kept for problem in task.train]
        stream = Passes(problems, completion_seed(seed, "warm start"))
        for index in range(done, section.num_steps):
            with self.ledger.phase("warm_start"):
                batch = stream.next(index, section.batch_size)
                held = self.feedback.look(index, batch)
                rows = shown.rows(index, self.feedback.mixed(index, batch))
                values = held | self.updater.step(index, rows, self.feedback)
            self.ledger.charge_update("warm_start", loaded, self.updater.take_counts())
            self.ledger.charge_rollout("warm_start", loaded, self.bench.engine.take_counts())
            yield index + 1, values
