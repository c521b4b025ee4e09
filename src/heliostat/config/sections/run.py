"""The sections of a run's place, model and weights: ``run``, ``distributed``, ``model``, ``lora``, ``tracking``.

Left out: what the model learns from (``task``, ``rollout``), and how (``training``).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from heliostat.config.sections.base import Section


class RunSection(Section):
    """Name, folder, seed and threads of the run."""

    name: str = Field("", description="name of the run folder; empty: recipe name and date")
    root: str = Field("runs", description="folder in which run folders are created")
    seed: int = Field(0, ge=0, description="seed of every random choice in the run")
    num_threads: int = Field(0, ge=0, description="torch threads; 0: all CPUs available to this process")
    num_workers: int = Field(
        0,
        ge=0,
        description="threads that differentiate a micro-batch each, on a CPU; 0: one per torch thread, or one with "
        "rollout.max_staleness; no result depends on it where an operation has one thread",
    )
    deterministic: bool = Field(True, description="refuse non-deterministic kernels")


class DistributedSection(Section):
    """Settings of a run that torchrun's processes share. One process ignores them; a resumed run may change them."""

    placement: Literal["replicated", "sharded"] = Field(
        "replicated",
        description="replicated: all weights on every rank, gradients averaged; sharded: split layer by layer (FSDP2)",
    )
    compute_dtype: Literal["stored", "bfloat16"] = Field(
        "stored", description="dtype in which sharded weights are gathered and used; stored: the model's own"
    )
    timeout_s: float = Field(1800.0, gt=0, description="seconds that a rank waits for the others before it gives up")

    @model_validator(mode="after")
    def _type(self) -> Self:
        if self.compute_dtype != "stored" and self.placement != "sharded":
            raise ValueError(
                "distributed.compute_dtype is only used with distributed.placement = 'sharded'; the dtype of "
                "replicated weights is model.dtype"
            )
        return self


class ModelSection(Section):
    """The model to start from."""

    path: str = Field("tiny", description="'tiny', 'smollm2-135m', a local folder, or a hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the weights; auto: bfloat16 where it is faster than float32"
    )
    chat: bool | Literal["auto"] = Field("auto", description="render prompts with the tokenizer's chat template")
    system: str = Field("", description="system message at the start of every chat prompt")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, like enable_thinking = false"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="shape of the built-in tiny model")


class LoraSection(Section):
    """Low-rank adapters (extra: lora), trained instead of the model's own weights."""

    rank: int = Field(0, ge=0, description="rank of every adapter; 0: train the whole model")
    alpha: int = Field(16, ge=1, description="an adapter's output is scaled by alpha / rank")
    layers: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names of linear layers, embeddings or expert weights to adapt; empty: all linear but the head",
    )
    modules_to_save: tuple[str, ...] = Field(
        (), strict=False, description="names of modules that are trained and saved in full, like lm_head"
    )


class TrackingSection(Section):
    """Trackers that receive the metrics of metrics.jsonl too."""

    tensorboard: bool = Field(False, description="also write TensorBoard events (extra: tensorboard)")
    wandb: str = Field("", description="W&B project; empty: off (extra: wandb)")
    trackio: str = Field("", description="trackio project; empty: off (extra: trackio)")
    trackers: tuple[str, ...] = Field(
        (), strict=False, description="further trackers, each 'my_module:MyTracker' or a name that a package declares"
    )
    tracker_settings: dict[str, Any] = Field(
        default_factory=dict, description="settings of further trackers, a table by the tracker's name"
    )
    import_from: str = Field(
        "", description="folder of your own trackers' modules, besides the working directory; a recipe names its own"
    )
