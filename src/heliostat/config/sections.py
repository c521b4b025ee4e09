"""The sections of a recipe and their settings, each with its type, bounds, default and a phrase that explains it.

Sections whose keys depend on a name (``objective``, ``optimizer``, ``task``) keep the rest of their keys as
``settings``, which the room that owns the named thing checks with ``build_checked``.

Left out: where settings come from (``layers``, ``recipes``) and what they do (their room).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class NamedSection(BaseModel):
    """A section whose ``name`` picks a thing, and whose other keys belong to that thing."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the named thing."""
        return dict(self.__pydantic_extra__ or {})


class RunSection(Section):
    """Name, place, seed and threads of the run."""

    name: str = Field("", description="name of the run folder; empty: recipe name and date")
    root: str = Field("runs", description="folder that run folders are created in")
    seed: int = Field(0, ge=0, description="seed of everything random in the run")
    num_threads: int = Field(0, ge=0, description="torch threads; 0: as many as this process may use")
    deterministic: bool = Field(True, description="refuse non-deterministic kernels")


class DistributedSection(Section):
    """How the processes that torchrun started share a run; one process ignores it, and a resumed run may change it."""

    placement: Literal["replicated", "sharded"] = Field(
        "replicated", description="whole on every rank, gradients averaged; or cut over ranks, layer by layer (FSDP2)"
    )
    compute_dtype: Literal["stored", "bfloat16"] = Field(
        "stored", description="type that sharded weights are gathered and used in; stored: the model's own"
    )
    timeout_s: float = Field(1800.0, gt=0, description="seconds that a rank waits for the others before it gives up")

    @model_validator(mode="after")
    def _type(self) -> Self:
        if self.compute_dtype != "stored" and self.placement != "sharded":
            raise ValueError(
                "distributed.compute_dtype is only used with distributed.placement = 'sharded'; the type of replicated "
                "weights is model.dtype"
            )
        return self


class ModelSection(Section):
    """The model to start from."""

    path: str = Field("tiny", description="'tiny', 'smollm2-135m', a local folder, or a hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 only where native")
    chat: bool | Literal["auto"] = Field("auto", description="render prompts with the tokenizer's chat template")
    system: str = Field("", description="system message put before every chat prompt")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, like enable_thinking = false"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="shape of the built-in tiny model")


class LoraSection(Section):
    """Low-rank adapters (extra: lora), trained in place of the model's own weights."""

    rank: int = Field(0, ge=0, description="rank of every adapter; 0: train the whole model")
    alpha: int = Field(16, ge=1, description="adapters count alpha / rank times")
    layers: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names of linear layers, embeddings or experts' weights that get one; empty: all but the head",
    )
    modules_to_save: tuple[str, ...] = Field(
        (), strict=False, description="names of modules trained and saved whole beside the adapters, like lm_head"
    )


class TaskSection(NamedSection):
    """Problems and their verifier; further keys belong to the named task, like --task.settings.max_terms 3.

    A recipe may have several; ``--task.1.key`` means the second. The further keys are checked by ``heliostat.tasks``.
    """

    name: str = Field("reasoning-gym/chain_sum", description="'reasoning-gym/<data set>', or 'file' for own problems")
    num_train: int = Field(2048, ge=1, description="training problems")
    num_heldout: int = Field(200, ge=1, description="held-out problems, disjoint from training")


class AuditSection(Section):
    """The audit of the reward before training: right answers and known tricks, paid by the run's own verifiers."""

    enabled: bool = Field(True, description="audit the reward before training; --no-audit: false")
    num_oracles: int = Field(200, ge=0, description="right answers that are paid, drawn where there are more")
    max_refused: float = Field(0.1, ge=0, le=1, description="share of right answers that may earn nothing; more: stop")
    budget_s: float = Field(10.0, gt=0, description="seconds for all of it, from the first verdict on")


class WarmStartSection(Section):
    """Supervised steps on worked solutions, before post-training."""

    num_steps: int = Field(0, ge=0, description="supervised steps before post-training; 0: none")
    batch_size: int = Field(64, ge=1, description="worked solutions per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the warm start")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the peak")
    stop_at: float = Field(1.0, gt=0, le=1, description="stop early once held-out pass@1 reaches this")
    eval_every: int = Field(50, ge=1, description="steps between checks of stop_at")


class FeedbackSection(Section):
    """A statistic of the model's own text that supervised steps hold at a target (reconstruction)."""

    statistic: Literal["none", "entropy", "unrepeated", "distinct"] = Field(
        "none", description="token entropy, 1 - rep-4, or the share of different tokens; all high for varied text"
    )
    target: float = Field(0.0, ge=0, description="what it is held at; 0: its own level at the first look")
    actuator: Literal["loss", "lr", "temperature", "mix"] = Field(
        "loss",
        description="added loss; or lower lr, lower temperature of the likelihood, or problems of the last task, "
        "while below the target",
    )
    weight: float = Field(1.0, gt=0, description="weight of the added loss")
    start: int = Field(0, ge=0, description="supervised steps before the first look")
    every: int = Field(10, ge=1, description="supervised steps between looks")
    num_texts: int = Field(16, ge=2, description="own texts per look")

    @property
    def mixes(self) -> bool:
        """Whether problems of the last task are kept back for the actuator."""
        return self.statistic != "none" and self.actuator == "mix"


class RolloutSection(Section):
    """How completions are sampled."""

    prompts_per_step: int = Field(32, ge=1, description="problems per step")
    group_size: int = Field(8, ge=1, description="completions per problem")
    max_new_tokens: int = Field(64, ge=1, description="completion budget in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; log-probs are taken at it too")
    top_p: float = Field(1.0, gt=0, le=1, description="must be 1 for training: truncation changes the policy")
    top_k: int = Field(0, ge=0, description="must be 0 for training: truncation changes the policy")
    stop: tuple[str, ...] = Field((), strict=False, description="strings that end a completion")
    max_rows: int = Field(512, ge=1, description="sequences decoded at once; more are refilled as rows finish")
    shared_prompt: bool = Field(True, description="decode against one copy of each prompt (on a CPU, where exact)")
    fused_layers: bool = Field(
        True, description="with shared prompts, decode through fused layers where the shape fits"
    )
    num_workers: int = Field(1, ge=1, description="threads that decode a share of the prompts each, in this process")
    engine: Literal["torch", "vllm"] = Field(
        "torch", description="sample in this process, or on a vLLM server (extra: server)"
    )
    server_url: str = Field("", description="the vLLM server, like http://host:8000; its key: VLLM_API_KEY")
    sync_dir: str = Field("", description="folder that trainer and server both see, for handing over weights")
    server_timeout_s: float = Field(600.0, gt=0, description="seconds for one answer of the server")
    server_retries: int = Field(3, ge=0, description="further attempts after an answer that failed")
    server_requests: int = Field(64, ge=1, description="prompts that the server works on at once")
    max_staleness: int = Field(
        0, ge=0, description="steps that rollouts may be older than what they train; above 0: sampled meanwhile"
    )
    max_parity_gap: float = Field(0.0, ge=0, description="largest |logp_gen - logp_new| in nats; 0: by precision")

    @model_validator(mode="after")
    def _server(self) -> Self:
        server_keys = ("server_url", "sync_dir", "server_timeout_s", "server_retries", "server_requests")
        if self.engine != "vllm":
            ignored = [key for key in server_keys if getattr(self, key) != type(self).model_fields[key].default]
            if ignored:
                raise ValueError(
                    f"rollout.{ignored[0]} is only used with rollout.engine = 'vllm' (now '{self.engine}')"
                )
            return self
        if self.num_workers > 1:
            raise ValueError("rollout.num_workers is only used with rollout.engine = 'torch' (now 'vllm')")
        parts = urlsplit(self.server_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("rollout.engine = 'vllm' needs rollout.server_url, like http://host:8000")
        if parts.username is not None or parts.password is not None:
            raise ValueError("rollout.server_url holds a password; put the key into the environment as VLLM_API_KEY")
        if not self.sync_dir:
            raise ValueError("rollout.engine = 'vllm' needs rollout.sync_dir, a folder that the server sees as well")
        return self


class ObjectiveSection(NamedSection):
    """What an update optimises; further keys belong to the named objective, like --objective.tau 0.2.

    The further keys are checked by ``heliostat.objectives``.
    """

    name: str = Field("pmd-mean", description="'pmd-mean', or another objective of heliostat.objectives")


class OptimizerSection(NamedSection):
    """How an update is made; further keys belong to the named optimizer, like --optimizer.weight_decay 0.1.

    The further keys are checked by ``heliostat.optim``.
    """

    name: str = Field("adamw", description="'adamw', or another optimizer of heliostat.optim")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="shape after warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="clip the global gradient norm to this")
    reset_every: int = Field(0, ge=0, description="forget optimizer state every so many steps; 0: never (Kimi k1.5: 1)")


class TrainSection(Section):
    """The loop of rollouts and updates, and its checkpoints."""

    num_steps: int = Field(100, ge=0, description="rollout-and-update steps")
    updates_per_step: int = Field(1, ge=1, description="optimizer updates per batch of rollouts, anchor fixed")
    focus: float = Field(
        0.0, ge=0, le=1, description="favour unsolved problems: 0 passes over all, 1 draws by 1 - success"
    )
    tokens_per_microbatch: int = Field(8192, ge=1, description="token budget of one forward, padding included")
    shared_prompt: bool = Field(True, description="run each prompt once per group where the model allows")
    gradient_checkpointing: bool = Field(
        False, description="compute layers again in the backward pass: less memory, more time"
    )
    drop_zero_signal: bool = Field(True, description="skip groups without gradient where that is exact")
    max_bad_steps: int = Field(3, ge=1, description="consecutive non-finite steps that end the run")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept on disk")
    try_export: bool = Field(True, description="before training, save the model, read it back and compare")


class TracesSection(Section):
    """The trace bank: where rollouts are kept, and where prefixes come from."""

    bank: str = Field("", description="SQLite file of the trace bank; empty: none")
    keep: Literal["all", "successes", "none"] = Field(
        "all", description="which of this run's rollouts go into the bank"
    )


class PrefixSection(NamedSection):
    """Prompts that begin with part of a stored solution; further keys belong to the named policy.

    The further keys, like ``--prefix.low 0.3``, are checked by ``heliostat.traces.cuts``.
    """

    name: str = Field("none", description="'none', or how solutions are cut: band, annealed, targeted, backtracking")
    share: float = Field(0.75, gt=0, le=1, description="share of a step's problems that come with a prefix")
    deliver: Literal["prefix", "hint", "unrelated"] = Field(
        "prefix", description="unfinished answer; or a control: told in the question, or another problem's prefix"
    )
    separator: str = Field("", description="cut only right behind this text, where a step of a solution ends")


class EvalSection(Section):
    """Held-out evaluations."""

    every: int = Field(20, ge=0, description="steps between held-out evaluations; 0: only before and after")
    num_problems: int = Field(100, ge=1, description="held-out problems per periodic evaluation")
    samples_per_problem: int = Field(1, ge=1, description="completions per problem in periodic evaluations")
    final_samples: int = Field(4, ge=1, description="completions per problem before and after training")
    num_transcripts: int = Field(8, ge=0, description="sampled transcripts kept per evaluation")


class GuardSection(Section):
    """What watches over the run, and what it may do about what it sees."""

    mode: Literal["shadow", "act", "off"] = Field(
        "shadow",
        description="shadow: say what it would do; act: do it; broken numbers are acted on in both; off: "
        "only what a run says outright, like that nothing is solved",
    )
    baseline_start: int = Field(20, ge=0, description="steps before the run's own level is taken")
    baseline_steps: int = Field(40, ge=2, description="steps that make up the run's own level")
    max_rollbacks: int = Field(3, ge=0, description="times a run may go back to a checkpoint before it is stopped")
    actuator: Literal[
        "none", "entropy-bonus", "variety-bonus", "clip-high", "covariance", "tau", "temperature", "focus", "kl-ref"
    ] = Field("none", description="what holds entropy at its target (mode act); the guard page says what each does")
    controller: Literal["pi", "bang-bang", "dual"] = Field("pi", description="feedback law of the actuator")
    entropy_target: float = Field(0.6, gt=0, description="target of entropy, as a share of the run's own early level")
    panel_every: int = Field(50, ge=0, description="steps between measurements on the panel; 0: none")
    panel_problems: int = Field(32, ge=1, description="held-out problems on the panel")
    panel_samples: int = Field(4, ge=1, description="completions per problem on the panel")


class TrackingSection(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = Field(False, description="also write TensorBoard events (extra: tensorboard)")
    wandb: str = Field("", description="W&B project; empty: off (extra: wandb)")
    trackio: str = Field("", description="trackio project; empty: off (extra: trackio)")


class Recipe(Section):
    """Every setting of one run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    task: tuple[TaskSection, ...] = Field((TaskSection(),), min_length=1, strict=False)
    audit: AuditSection = AuditSection()
    warm_start: WarmStartSection = WarmStartSection()
    feedback: FeedbackSection = FeedbackSection()
    rollout: RolloutSection = RolloutSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    traces: TracesSection = TracesSection()
    prefix: PrefixSection = PrefixSection()
    eval: EvalSection = EvalSection()
    guard: GuardSection = GuardSection()
    tracking: TrackingSection = TrackingSection()
    distributed: DistributedSection = DistributedSection()

    @field_validator("task", mode="before")
    @classmethod
    def _one_table_is_one_task(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping | TaskSection) else value

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
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
                f"prefix.name = '{self.prefix.name}' cuts stored solutions and needs traces.bank; fill one with "
                "heliostat sample MODEL --recipe RECIPE --bank FILE"
            )
        if self.rollout.max_staleness and self.guard.actuator == "temperature":
            raise ValueError(
                "guard.actuator = 'temperature' turns the temperature of sampling and training together, which needs "
                "rollout.max_staleness = 0: rollouts that wait were sampled at the one before"
            )
        if self.rollout.max_staleness and self.rollout.num_workers > 1 and self.run.num_threads != 1:
            raise ValueError(
                "rollout.num_workers above 1 with rollout.max_staleness above 0 needs run.num_threads = 1: torch's "
                "number of threads is the whole process's and would change under an update"
            )
        if self.rollout.top_p < 1 or self.rollout.top_k > 0:
            raise ValueError(
                "rollout.top_p and rollout.top_k truncate the policy that was sampled, so its log-probs no longer "
                "match the trainer's; leave them at 1 and 0 for training (heliostat eval and sample accept them)"
            )
        return self
