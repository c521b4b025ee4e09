"""The sections of training: ``warm_start``, ``feedback``, ``objective``, ``optimizer``, ``train``, ``eval``, ``guard``.

Left out: the keys of a named objective or optimizer, which the package that defines it checks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from heliostat.config.sections.base import NamedSection, Section


class WarmStartSection(Section):
    """Supervised steps on worked solutions, before post-training."""

    num_steps: int = Field(0, ge=0, description="supervised steps before post-training; 0: none")
    batch_size: int = Field(64, ge=1, description="worked solutions per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the warm start")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="final learning rate as a share of the peak")
    stop_at: float = Field(1.0, gt=0, le=1, description="stop early once held-out pass@1 reaches this value")
    eval_every: int = Field(50, ge=1, description="steps between checks of stop_at")


class FeedbackSection(Section):
    """Control of a statistic of the model's own text during supervised steps (reconstruction)."""

    statistic: Literal["none", "entropy", "unrepeated", "distinct"] = Field(
        "none",
        description="token entropy; unrepeated: 1 - rep-4; distinct: share of distinct tokens; high for varied text",
    )
    target: float = Field(0.0, ge=0, description="target of the statistic; 0: its value at the first measurement")
    actuator: Literal["loss", "lr", "temperature", "mix"] = Field(
        "loss",
        description="loss: an added loss; below the target, lr and temperature (of the likelihood) are lowered, "
        "and mix adds problems of the last task",
    )
    weight: float = Field(1.0, gt=0, description="weight of the added loss")
    start: int = Field(0, ge=0, description="supervised steps before the first measurement")
    every: int = Field(10, ge=1, description="supervised steps between measurements")
    num_texts: int = Field(16, ge=2, description="sampled texts per measurement")

    @property
    def mixes(self) -> bool:
        """Return whether problems of the last task are reserved for the actuator."""
        return self.statistic != "none" and self.actuator == "mix"


class ObjectiveSection(NamedSection):
    """The objective of an update; further keys belong to the named objective, like --objective.tau 0.2.

    The further keys are checked by ``heliostat.objectives``.
    """

    name: str = Field(
        "pmd-mean", description="'pmd-mean', another objective of heliostat.objectives, or your own 'my_module:MyClass'"
    )
    import_from: str = Field(
        "", description="folder of your own objective's module, besides the working directory; a recipe names its own"
    )


class OptimizerSection(NamedSection):
    """The optimizer of an update; further keys belong to the named optimizer, like --optimizer.weight_decay 0.1.

    The further keys are checked by ``heliostat.optim``.
    """

    name: str = Field(
        "adamw", description="'adamw', another optimizer of heliostat.optim, or your own 'my_module:MyClass'"
    )
    import_from: str = Field(
        "", description="folder of your own optimizer's module, besides the working directory; a recipe names its own"
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="shape of the learning rate after warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="final learning rate as a share of the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="clip the global gradient norm to this value")
    reset_every: int = Field(0, ge=0, description="steps between resets of optimizer state; 0: never (Kimi k1.5: 1)")


class TrainSection(Section):
    """The loop of rollouts and updates, and its checkpoints."""

    num_steps: int = Field(100, ge=0, description="training steps, each with rollouts and updates")
    updates_per_step: int = Field(1, ge=1, description="optimizer updates per batch of rollouts; the anchor is fixed")
    focus: float = Field(
        0.0, ge=0, le=1, description="preference for unsolved problems; 0: uniform epochs, 1: draw by 1 - success rate"
    )
    tokens_per_microbatch: int = Field(8192, ge=1, description="tokens of one forward pass, padding included")
    shared_prompt: bool = Field(True, description="compute each prompt once per group, if the model allows it")
    gradient_checkpointing: bool = Field(
        False, description="recompute layers in the backward pass: less memory, more time"
    )
    drop_zero_signal: bool = Field(
        True, description="skip groups whose advantages are all 0, if that leaves the gradient unchanged"
    )
    max_bad_steps: int = Field(3, ge=1, description="number of consecutive non-finite steps that ends the run")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="number of checkpoints kept on disk")
    try_export: bool = Field(True, description="before training, save the model, load it again and compare")


class EvalSection(Section):
    """Held-out evaluations."""

    every: int = Field(20, ge=0, description="steps between held-out evaluations; 0: only before and after training")
    num_problems: int = Field(100, ge=1, description="held-out problems per periodic evaluation")
    samples_per_problem: int = Field(1, ge=1, description="completions per problem in periodic evaluations")
    final_samples: int = Field(4, ge=1, description="completions per problem before and after training")
    num_transcripts: int = Field(8, ge=0, description="transcripts stored per evaluation")


class GuardSection(Section):
    """The guard, which monitors the run's metrics, raises alarms and may act on them."""

    mode: Literal["shadow", "act", "off"] = Field(
        "shadow",
        description="shadow: report the actions it would take; act: take them; in both, non-finite metrics trigger a "
        "rollback; off: only findings that need no baseline, such as no problem solved",
    )
    baseline_start: int = Field(20, ge=0, description="steps before the baseline is measured")
    baseline_steps: int = Field(40, ge=2, description="steps over which the baseline is measured")
    max_rollbacks: int = Field(3, ge=0, description="number of rollbacks after which a further one stops the run")
    actuator: Literal[
        "none", "entropy-bonus", "variety-bonus", "clip-high", "covariance", "tau", "temperature", "focus", "kl-ref"
    ] = Field("none", description="setting that holds entropy at its target (mode act); explained on the guard page")
    controller: Literal["pi", "bang-bang", "dual"] = Field("pi", description="feedback law of the actuator")
    entropy_target: float = Field(0.6, gt=0, description="target entropy as a share of its baseline")
    panel_every: int = Field(50, ge=0, description="steps between measurements on the panel; 0: none")
    panel_problems: int = Field(32, ge=1, description="held-out problems on the panel")
    panel_samples: int = Field(4, ge=1, description="completions per problem on the panel")
