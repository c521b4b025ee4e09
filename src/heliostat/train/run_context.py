"""The parts of a run that exist before its first step and never change.

Left out: state that changes from step to step (``accounting.run_counters``, ``run_state``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.config import Recipe
from heliostat.models.prompts.encoding import chat_messages
from heliostat.objectives import Objective
from heliostat.tasks import Task, VerifierPool
from heliostat.tracking import Tracker
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.console.interrupt import InterruptHandler
from heliostat.train.console.progress import Display
from heliostat.train.data.trace_log import TraceLog
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.teacher import Teacher
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.run_folder.checkpoints import Checkpoints
from heliostat.train.run_folder.export import NUM_PROMPTS
from heliostat.train.run_folder.folder import RunFolder
from heliostat.types import Problem, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """One run: its recipe, folder, processes, data, model, and the destinations of its results."""

    recipe: Recipe
    folder: RunFolder
    checkpoints: Checkpoints
    runtime: Runtime
    tasks: Sequence[Task]
    bundle: ModelBundle
    objective: Objective
    teacher: Teacher | None
    pool: VerifierPool
    trackers: Sequence[Tracker]
    display: Display
    interrupt: InterruptHandler
    ledger: Ledger
    traces: TraceLog

    @property
    def train_problems(self) -> list[Problem]:
        """The training problems of all tasks."""
        return [problem for task in self.tasks for problem in task.train]

    @property
    def heldout_problems(self) -> list[Problem]:
        """The held-out problems of all tasks."""
        return [problem for task in self.tasks for problem in task.heldout]

    def export_prompts(self) -> list[Prompt]:
        """Build the prompts on which a saved model is compared with the one in memory."""
        return [self.bundle.prompt(problem) for problem in self.heldout_problems[:NUM_PROMPTS]]

    def uses_chat(self) -> bool:
        """Return whether the first held-out problem goes through the tokenizer's chat template."""
        section = self.recipe.model
        return any(
            chat_messages(self.bundle.loaded, problem, section.chat, section.system) is not None
            for problem in self.heldout_problems[:1]
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step to all trackers and to the terminal; steps of the warm start are 0 or less."""
        for tracker in self.trackers:
            tracker.log(step, metrics)
        self.display.step(step if step > 0 else step + self.recipe.warm_start.num_steps, metrics)
