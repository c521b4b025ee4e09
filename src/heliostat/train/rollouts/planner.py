"""The sampling request of each training step.

Every request is a function of the run's seed and the step's position in the data, so that a resumed run repeats it. A
rolled-back step is not planned again: the position moves past it.

Left out: when a request is sampled, and by which thread (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.config import Recipe
from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.train.accounting.run_counters import RunCounters
from heliostat.train.data.curriculum import Curriculum
from heliostat.train.data.prefixes import Prefixes
from heliostat.train.data.trace_log import TraceLog
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.rollouts.request import RolloutRequest
from heliostat.train.update.updater import Updater
from heliostat.types import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPlanner:
    """The planner of a run, which chooses problems and prefixes from the current success rates.

    Attributes:
        position: maps a step to its position in the data, which counts rolled-back steps as well.
    """

    recipe: Recipe
    bundle: ModelBundle
    curriculum: Curriculum
    prefixes: Prefixes
    updater: Updater
    traces: TraceLog
    counters: RunCounters
    position: Callable[[int], int]

    def seed(self, step: int) -> int:
        """Return the seed of a step, for its completions and the order of its groups in the update."""
        return completion_seed(self.recipe.run.seed, "step", self.position(step))

    def request(self, step: int) -> RolloutRequest:
        """Build the sampling request for ``step`` from the current weights and success rates."""
        index = self.position(step) - 1
        problems = self.curriculum.next(index, self.recipe.rollout.prompts_per_step - self.prefixes.per_step)
        prompts = [self.bundle.prompt(problem) for problem in problems] + self.prefixes.next(index)
        return RolloutRequest(
            step,
            prompts,
            SamplingSettings(temperature=self.updater.policy.temperature),
            seed=self.seed(step),
            policy_step=self.counters.step,
            version=self.updater.version,
            sources=self.traces.sources(self.counters.step),
        )

    def update(self, groups: Sequence[Group]) -> None:
        """Update success rates with verified groups."""
        self.curriculum.update(groups)
        self.prefixes.update(groups)
