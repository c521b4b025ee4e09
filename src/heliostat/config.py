"""The typed recipe: every setting of a run, in one place, checked before anything expensive happens.

A recipe is a tree of small frozen sections. Unknown keys, wrong types and contradictory settings raise
``ConfigError`` with one sentence that names the key and the nearest valid one. Sections whose keys depend on a name
(``objective``, ``optimizer``, ``task``) keep the rest of their keys in ``settings``-style extras, which the room that
owns the named thing validates with ``build_checked``.

Left out: finding recipe files, command-line syntax (``cli``), and the meaning of any setting (its room).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, ill-typed or contradicts another; the message is one line for the user."""


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NamedSection(BaseModel):
    """A section whose ``name`` picks a thing, and whose other keys belong to that thing."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the named thing."""
        return dict(self.__pydantic_extra__ or {})


class RunSection(Section):
    name: str = Field("", description="name of the run folder; empty: recipe name and date")
    root: str = Field("runs", description="folder that run folders are created in")
    seed: int = Field(0, ge=0, description="seed of everything random in the run")
    num_threads: int = Field(0, ge=0, description="torch threads; 0: as many as this process may use")
    deterministic: bool = Field(True, description="refuse non-deterministic kernels")


class ModelSection(Section):
    path: str = Field("tiny", description="'tiny', 'smollm2-135m', a local folder, or a hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 only where native")
    chat: bool | Literal["auto"] = Field("auto", description="render prompts with the tokenizer's chat template")
    system: str = Field("", description="system message put before every chat prompt")
    settings: dict[str, Any] = Field(default_factory=dict, description="shape of the built-in tiny model")


class TaskSection(NamedSection):
    """``name`` is ``reasoning-gym/<dataset>`` or ``file``; the rest is checked by ``heliostat.tasks``."""

    name: str = "reasoning-gym/chain_sum"
    num_train: int = Field(2048, ge=1, description="training problems")
    num_heldout: int = Field(200, ge=1, description="held-out problems, disjoint from training")


class WarmStartSection(Section):
    num_steps: int = Field(0, ge=0, description="supervised steps before post-training; 0: none")
    batch_size: int = Field(64, ge=1, description="worked solutions per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the warm start")
    stop_at: float = Field(1.0, gt=0, le=1, description="stop early once held-out pass@1 reaches this")
    eval_every: int = Field(50, ge=1, description="steps between checks of stop_at")


class RolloutSection(Section):
    prompts_per_step: int = Field(32, ge=1, description="problems per step")
    group_size: int = Field(8, ge=1, description="completions per problem")
    max_new_tokens: int = Field(64, ge=1, description="completion budget in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; log-probs are taken at it too")
    top_p: float = Field(1.0, gt=0, le=1, description="must be 1 for training: truncation changes the policy")
    top_k: int = Field(0, ge=0, description="must be 0 for training: truncation changes the policy")
    stop: tuple[str, ...] = Field((), description="strings that end a completion")
    max_rows: int = Field(512, ge=1, description="sequences decoded at once; more are refilled as rows finish")
    engine: Literal["torch"] = Field("torch", description="rollout engine")
    max_parity_gap: float = Field(1e-3, gt=0, description="largest |logp_gen - logp_new| the parity probe accepts")


class ObjectiveSection(NamedSection):
    """``name`` picks an objective; the rest is checked by ``heliostat.objectives``."""

    name: str = "pmd-mean"


class OptimizerSection(NamedSection):
    """``name`` picks an optimizer; the rest is checked by ``heliostat.optim``."""

    name: str = "adamw"
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="shape after warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="clip the global gradient norm to this")
    reset_every: int = Field(0, ge=0, description="forget optimizer state every so many steps; 0: never (Kimi k1.5: 1)")


class TrainSection(Section):
    num_steps: int = Field(100, ge=0, description="rollout-and-update steps")
    updates_per_step: int = Field(1, ge=1, description="optimizer updates per batch of rollouts, anchor fixed")
    tokens_per_microbatch: int = Field(8192, ge=1, description="token budget of one forward, padding included")
    shared_prompt: bool = Field(True, description="run each prompt once per group where the model allows")
    drop_zero_signal: bool = Field(True, description="skip groups without gradient where that is exact")
    max_bad_steps: int = Field(3, ge=1, description="consecutive non-finite steps that end the run")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept on disk")


class EvalSection(Section):
    every: int = Field(20, ge=0, description="steps between held-out evaluations; 0: only before and after")
    num_problems: int = Field(100, ge=1, description="held-out problems per periodic evaluation")
    samples_per_problem: int = Field(1, ge=1, description="completions per problem in periodic evaluations")
    final_samples: int = Field(4, ge=1, description="completions per problem before and after training")
    num_transcripts: int = Field(8, ge=0, description="sampled transcripts kept per evaluation")


class TrackingSection(Section):
    tensorboard: bool = Field(False, description="also write TensorBoard events (extra: tensorboard)")
    wandb: str = Field("", description="W&B project; empty: off (extra: wandb)")
    trackio: str = Field("", description="trackio project; empty: off (extra: trackio)")


class Recipe(Section):
    """Every setting of one run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    task: tuple[TaskSection, ...] = (TaskSection(),)
    warm_start: WarmStartSection = WarmStartSection()
    rollout: RolloutSection = RolloutSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        if self.train.updates_per_step > self.rollout.prompts_per_step:
            raise ValueError(
                f"train.updates_per_step = {self.train.updates_per_step} needs at least as many "
                f"rollout.prompts_per_step (now {self.rollout.prompts_per_step}): a group is never split"
            )
        if self.rollout.top_p < 1 or self.rollout.top_k > 0:
            raise ValueError(
                "rollout.top_p and rollout.top_k truncate the policy that was sampled, so its log-probs no longer match "
                "the trainer's; leave them at 1 and 0 for training (heliostat eval and sample accept them)"
            )
        return self


def nearest(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest choice, or an empty string."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def build_checked(cls: type[T], settings: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from user settings, with the same errors that a recipe section gives.

    Raises:
        ConfigError: a key is not a field of ``cls``, a value has the wrong type, or ``cls`` refused the values.
    """
    names = [spec.name for spec in dataclasses.fields(cls) if spec.init]  # type: ignore[arg-type]
    for key in settings:
        if key not in names:
            raise ConfigError(f"unknown key {where}.{key}{nearest(key, names)}; {where} takes: {', '.join(names)}")
    try:
        return TypeAdapter(cls).validate_python(dict(settings))
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from None


def describe(error: ValidationError, where: str = "") -> str:
    """The first problem of a pydantic error as one line: the dotted key, what is wrong, and what was given."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in ((where,) if where else ()) + tuple(first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" or not path:
        return message if not path else f"{path}: {message}"
    return f"{path} = {first['input']!r}: {message}"
