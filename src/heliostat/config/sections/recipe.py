"""A whole recipe: its sections, and the contradictions between them.

Left out: contradictions within a section, which its own file refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from heliostat.cards import Card, brief
from heliostat.config.sections.base import Section
from heliostat.config.sections.judge import JudgeSection
from heliostat.config.sections.rollout import RolloutSection
from heliostat.config.sections.run import DistributedSection, LoraSection, ModelSection, RunSection, TrackingSection
from heliostat.config.sections.task import AuditSection, EnvironmentSection, PrefixSection, TaskSection, TracesSection
from heliostat.config.sections.teacher import TeacherSection
from heliostat.config.sections.training import (
    EvalSection,
    FeedbackSection,
    GuardSection,
    ObjectiveSection,
    OptimizerSection,
    TrainSection,
    WarmStartSection,
)


class Recipe(Card, Section):
    """Every setting of one run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    task: tuple[TaskSection, ...] = Field((TaskSection(),), min_length=1, strict=False)
    environment: EnvironmentSection = EnvironmentSection(name="")
    audit: AuditSection = AuditSection()
    warm_start: WarmStartSection = WarmStartSection()
    feedback: FeedbackSection = FeedbackSection()
    rollout: RolloutSection = RolloutSection()
    objective: ObjectiveSection = ObjectiveSection()
    teacher: TeacherSection = TeacherSection()
    judge: JudgeSection = JudgeSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    traces: TracesSection = TracesSection()
    prefix: PrefixSection = PrefixSection()
    eval: EvalSection = EvalSection()
    guard: GuardSection = GuardSection()
    tracking: TrackingSection = TrackingSection()
    distributed: DistributedSection = DistributedSection()

    @property
    def gradient_workers(self) -> int:
        """Threads that differentiate micro-batches; 0 for one per torch thread, as in ``run.num_workers``.

        Workers change torch's number of threads while they run, which sampling in parallel would see.
        """
        return self.run.num_workers or int(self.rollout.max_staleness > 0)

    def card_line(self) -> str:
        tasks = ", ".join(task.name for task in self.task)
        ways = f"objective {self.objective.name}, optimizer {self.optimizer.name}, {self.train.num_steps} steps"
        return f"model {self.model.path}, task {tasks}, {ways}"

    def card_rows(self) -> list[tuple[str, str]]:
        """Return the settings of each section that differ from the defaults."""
        rows = []
        defaults = Recipe().model_dump(mode="json")
        for section, content in self.model_dump(mode="json").items():
            usual = defaults[section][0] if section == "task" else defaults[section]
            for table in content if section == "task" else [content]:
                other = [f"{key} = {brief(value)}" for key, value in table.items() if value != usual.get(key)]
                rows += [(section, ", ".join(other))] if other else []
        return rows

    @field_validator("task", mode="before")
    @classmethod
    def _one_table_is_one_task(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping | TaskSection) else value

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        if self.judge.mode == "pairwise" and self.rollout.group_size < 2:
            raise ValueError(
                "judge.mode = 'pairwise' compares the completions of a group, and rollout.group_size = 1; raise it"
            )
        if self.train.updates_per_step > self.rollout.prompts_per_step:
            raise ValueError(
                f"train.updates_per_step = {self.train.updates_per_step} needs at least as many "
                f"rollout.prompts_per_step (now {self.rollout.prompts_per_step}): a group is never split"
            )
        if self.feedback.mixes and len(self.task) < 2:
            raise ValueError(
                "feedback.actuator = 'mix' adds problems of the recipe's last task, so it needs a second [[task]]"
            )
        if self.prefix.name != "none" and not self.traces.bank:
            raise ValueError(
                f"prefix.name = '{self.prefix.name}' cuts stored solutions, so it needs traces.bank; fill a bank with "
                "heliostat sample MODEL --recipe RECIPE --bank FILE"
            )
        if self.prefix.name != "none" and self.environment.enabled:
            self._check_trajectory_prefixes()
        if self.rollout.max_staleness and self.guard.actuator == "temperature":
            raise ValueError(
                "guard.actuator = 'temperature' changes the temperature of sampling and training together, so it needs "
                "rollout.max_staleness = 0: waiting rollouts were sampled at the previous temperature"
            )
        if self.rollout.max_staleness and self.run.num_threads != 1:
            for name, count in (("rollout", self.rollout.num_workers), ("run", self.run.num_workers)):
                if count > 1:
                    raise ValueError(
                        f"{name}.num_workers above 1 with rollout.max_staleness above 0 needs run.num_threads = 1: "
                        "torch has one number of threads for the whole process, and sampling and updates overlap"
                    )
        if self.teacher.url and self.rollout.temperature != 1:
            raise ValueError(
                f"teacher.url gives log-probabilities at temperature 1, and rollout.temperature = "
                f"{self.rollout.temperature:g}; set it to 1, or load the teacher into this process with teacher.path"
            )
        if self.teacher.url and self.guard.actuator == "temperature":
            raise ValueError(
                "guard.actuator = 'temperature' changes the policy's temperature, and teacher.url gives "
                "log-probabilities at temperature 1; choose another actuator"
            )
        if self.teacher.hint != "none" and self.environment.enabled:
            raise ValueError(
                "teacher.hint does not work with an environment: its first observation ends the question, and a hint "
                "would have to follow it; set teacher.hint = 'none'"
            )
        if self.rollout.top_p < 1 or self.rollout.top_k > 0:
            raise ValueError(
                "rollout.top_p and rollout.top_k truncate the policy that was sampled, so its log-probs no longer "
                "match the trainer's; leave them at 1 and 0 for training (heliostat eval and sample accept them)"
            )
        return self

    def _check_trajectory_prefixes(self) -> None:
        """Refuse settings of prefixes that mean nothing where the turns of a trajectory are replayed."""
        if self.prefix.mode != "prefix":
            reasons = {
                "unrelated": "the turns of another problem would be replayed, which this problem's environment answers "
                "otherwise",
                "hint": "an environment's first observation ends the question, and a hint would have to follow it",
            }
            raise ValueError(
                f"prefix.mode = '{self.prefix.mode}' does not work with an environment: {reasons[self.prefix.mode]}; "
                "set prefix.mode = 'prefix'"
            )
        if self.prefix.separator:
            raise ValueError(
                "prefix.separator does not work with an environment: a trajectory is cut only where a reply of the "
                "environment ends; remove it"
            )
