"""The sections of a recipe and their settings, each with its type, bounds, default and a phrase that explains it.

Sections whose keys depend on a name (``objective``, ``optimizer``, ``task``) keep the remaining keys as ``settings``.
The package that defines the named thing checks them with ``build_checked``.

Left out: reading settings (``layers``, ``recipes``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heliostat.cards import Card, brief


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class NamedSection(BaseModel):
    """A section whose ``name`` selects an implementation, and whose other keys belong to that implementation."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the named implementation."""
        return dict(self.__pydantic_extra__ or {})


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
    """How processes started by torchrun share a run. A single process ignores it; a resumed run may change it."""

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


class TaskSection(NamedSection):
    """Problems and their verifier; further keys belong to the named task, like --task.settings.max_terms 3.

    A recipe may have several; ``--task.1.key`` means the second. The further keys are checked by ``heliostat.tasks``.
    """

    name: str = Field(
        "reasoning-gym/chain_sum",
        description="'reasoning-gym/<data set>', 'file' for problems of your own, or 'environment' for those that the "
        "recipe's environment makes",
    )
    num_train: int = Field(2048, ge=1, description="number of training problems")
    num_heldout: int = Field(200, ge=1, description="number of held-out problems, disjoint from training")


class EnvironmentSection(NamedSection):
    """An environment or tools that answer the model over several turns; further keys are the environment's own.

    The further keys, like ``--environment.num_keys 5``, are checked by ``heliostat.tasks.environments``.
    """

    name: str = Field("", description="a shipped environment, or 'my_module:Maze'; empty: none, or tools alone")
    tools: tuple[str, ...] = Field(
        (), strict=False, description="typed functions that the model may call, each 'my_module:lookup'"
    )
    import_from: str = Field(
        "", description="folder that modules are imported from, besides the working directory; a recipe names its own"
    )
    max_turns: int = Field(8, ge=1, description="turns of one episode")
    max_tokens_per_turn: int = Field(64, ge=1, description="sampled tokens of one turn; a turn that needs more is cut")
    max_tokens: int = Field(
        256, ge=1, description="tokens of an episode after its prompt, the environment's answers included"
    )
    timeout_s: float = Field(10.0, gt=0, description="time limit of one call of the environment in seconds")
    memory_mb: int = Field(1024, ge=16, description="memory of one environment process in MiB, after loading")
    num_workers: int = Field(4, ge=1, description="environment processes; each serves many episodes in turn")

    @property
    def enabled(self) -> bool:
        """Whether the recipe trains on episodes of several turns."""
        return bool(self.name or self.tools)

    @property
    def recorded_name(self) -> str:
        """The names of the environment and its tools in one text, as traces record them; empty: none."""
        return "+".join(filter(None, (self.name, *self.tools)))


class AuditSection(Section):
    """The audit before training: the run's own verifiers grade right answers and known reward hacks."""

    enabled: bool = Field(True, description="audit the reward before training; --no-audit sets it to false")
    num_oracles: int = Field(200, ge=0, description="right answers to grade at most; a random sample if there are more")
    max_refused: float = Field(
        0.1, ge=0, le=1, description="largest share of right answers without reward; above it the run stops"
    )
    budget_s: float = Field(10.0, gt=0, description="time limit of the audit in seconds, from the first verdict")


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
        """Whether problems of the last task are reserved for the actuator."""
        return self.statistic != "none" and self.actuator == "mix"


SERVERS = ("vllm", "sglang")

DROPS_WEIGHTS = 2
"""The level of sleep at which a server loses its weights."""
"""Engines that sample on a server."""


class RolloutSection(Section):
    """How completions are sampled."""

    prompts_per_step: int = Field(32, ge=1, description="problems per step")
    group_size: int = Field(8, ge=1, description="completions per problem")
    max_new_tokens: int = Field(64, ge=1, description="completion budget in tokens")
    temperature: float = Field(1.0, gt=0, description="temperature of sampling and of all log-probs")
    top_p: float = Field(1.0, gt=0, le=1, description="must be 1 for training: truncation changes the policy")
    top_k: int = Field(0, ge=0, description="must be 0 for training: truncation changes the policy")
    stop: tuple[str, ...] = Field((), strict=False, description="strings that end a completion")
    max_rows: int = Field(512, ge=1, description="sequences decoded at once; waiting ones start as others finish")
    shared_prompt: bool = Field(
        True, description="keep one copy of each prompt's cache for its whole group (on a CPU, where exact)"
    )
    fused_layers: bool = Field(
        True, description="with shared prompts, decode through fused layers if the model's shape allows"
    )
    reorder_weights: bool = Field(
        True, description="decode with a copy of the weights in an order that suits few rows (on a CPU, up to 2 GiB)"
    )
    num_workers: int = Field(1, ge=1, description="decoding threads in this process; each takes a share of the prompts")
    engine: str = Field(
        "torch",
        description="torch: sample in this process; vllm, sglang: on a server of this kind (extra: server); or your "
        "own 'my_module:MyEngine'",
    )
    engine_settings: dict[str, Any] = Field(default_factory=dict, description="settings of your own engine")
    import_from: str = Field(
        "", description="folder of your own engine's module, besides the working directory; a recipe names its own"
    )
    server_url: str = Field(
        "",
        description="address of the server, like http://host:8000; its key is the environment's VLLM_API_KEY or "
        "SGLANG_API_KEY",
    )
    sync_dir: str = Field("", description="folder, visible to trainer and server, through which weights are synced")
    sync: Literal["auto", "weights", "adapter", "nccl"] = Field(
        "auto",
        description="what a sync sends: weights: the whole model; adapter: the adapter alone; auto: the adapter where "
        "there is one and the server can load it; nccl: the whole model from GPU to GPU (vllm, not run)",
    )
    sleep_level: int = Field(
        0,
        ge=0,
        le=2,
        description="of a vllm server on the trainer's GPU, during updates: 0: it keeps its memory; 1: its weights "
        "move to host memory; 2: they are dropped, and sent again",
    )
    server_timeout_s: float = Field(600.0, gt=0, description="time limit of one server request in seconds")
    server_retries: int = Field(3, ge=0, description="retries of a failed server request")
    server_requests: int = Field(64, ge=1, description="concurrent server requests, one prompt each")
    max_staleness: int = Field(
        0, ge=0, description="how many steps old rollouts may be; above 0, sampling runs in parallel with training"
    )
    max_parity_gap: float = Field(
        0.0, ge=0, description="largest accepted |logp_gen - logp_new| in nats; 0: chosen from the precision"
    )

    @property
    def on_server(self) -> bool:
        """Whether completions come from a server."""
        return self.engine in SERVERS

    @model_validator(mode="after")
    def _server(self) -> Self:
        server_keys = (
            *("server_url", "sync_dir", "sync", "sleep_level"),
            *("server_timeout_s", "server_retries", "server_requests"),
        )
        if self.num_workers > 1 and self.engine != "torch":
            raise ValueError(
                f"rollout.num_workers = {self.num_workers} is only used with rollout.engine = 'torch' (now "
                f"'{self.engine}'); set rollout.num_workers = 1"
            )
        if not self.on_server:
            ignored = [key for key in server_keys if getattr(self, key) != type(self).model_fields[key].default]
            if ignored:
                raise ValueError(
                    f"rollout.{ignored[0]} is only used with rollout.engine = 'vllm' or 'sglang' (now '{self.engine}')"
                )
            return self
        parts = urlsplit(self.server_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"rollout.engine = '{self.engine}' needs rollout.server_url, like http://host:8000")
        if parts.username is not None or parts.password is not None:
            key_name = f"{self.engine.upper()}_API_KEY"
            raise ValueError(f"rollout.server_url holds a password; put the key into the environment as {key_name}")
        self._refuse_nccl()
        if not self.sync_dir and self.sync != "nccl":
            raise ValueError(
                f"rollout.engine = '{self.engine}' needs rollout.sync_dir, a folder that the server sees too"
            )
        self._refuse_sleep()
        return self

    def _refuse_nccl(self) -> None:
        if self.sync != "nccl":
            return
        if self.engine != "vllm":
            raise ValueError("rollout.sync = 'nccl' is only written for rollout.engine = 'vllm'; set it to 'weights'")
        if self.sync_dir:
            raise ValueError("rollout.sync_dir has no effect with rollout.sync = 'nccl', which writes no files")
        if self.sleep_level:
            raise ValueError(
                "rollout.sync = 'nccl' needs a GPU for the trainer and others for the server, and rollout.sleep_level "
                "is for a shared one; set rollout.sync = 'weights', or rollout.sleep_level = 0"
            )

    def _refuse_sleep(self) -> None:
        if not self.sleep_level:
            return
        if self.engine != "vllm":
            raise ValueError(
                f"rollout.sleep_level is only used with rollout.engine = 'vllm' (now '{self.engine}'): SGLang does not "
                "tell whether its memory is released, and ends if memory is resumed that was not; set it to 0"
            )
        if self.max_staleness:
            raise ValueError(
                f"rollout.sleep_level = {self.sleep_level} and rollout.max_staleness = {self.max_staleness} exclude "
                "each other: a sleeping server cannot sample while the trainer trains; set one of them to 0"
            )
        if self.sleep_level == DROPS_WEIGHTS and self.sync == "adapter":
            raise ValueError(
                "rollout.sleep_level = 2 drops the server's weights, on which an adapter would stand; set "
                "rollout.sleep_level = 1, or rollout.sync = 'weights'"
            )


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


OF_SERVED_TEACHERS = ("engine", "model", "timeout_s", "retries", "num_requests", "key_name")
"""Settings of a teacher on a server, which one in this process refuses."""


def _check_address(key: str, url: str, key_name: str) -> None:
    """Refuse a text that is no address of a server, before ``/v1``.

    Args:
        key: the setting.
        key_name: the environment variable of the server's key.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{key} = '{url}' is no address; it looks like http://host:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{key} holds a password; put the key into the environment as {key_name}")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"{key} = '{url}' must end before /v1, which is added")


class TeacherSection(Section):
    """A teacher, whose distributions the policy is to match on its own samples (on-policy distillation)."""

    path: str = Field(
        "", description="folder, hub id or run folder of the teacher; 'self': the policy itself, with teacher.hint"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the teacher's weights; auto: bfloat16 where the hardware supports it natively"
    )
    url: str = Field(
        "", description="address of a server with the teacher, in place of teacher.path, before /v1 (extra: server)"
    )
    engine: Literal["vllm", "sglang"] = Field("vllm", description="kind of that server, by whose routes it is asked")
    model: str = Field("", description="name of the teacher on its server")
    timeout_s: float = Field(120.0, gt=0, description="time limit of one attempt at a request in seconds")
    retries: int = Field(3, ge=0, description="retries of a request that failed for a reason that may pass")
    num_requests: int = Field(8, ge=1, description="requests at a time, of up to 16 completions each")
    key_name: str = Field(
        "",
        description="environment variable that holds the server's key; empty: VLLM_API_KEY or SGLANG_API_KEY, by "
        "teacher.engine",
    )
    kind: Literal["sampled", "reverse-kl", "forward-kl", "jsd"] = Field(
        "sampled",
        description="distance of a token; sampled: reverse KL from the sampled token alone; the others: over the whole "
        "vocabulary",
    )
    weight: float = Field(1.0, gt=0, description="weight of the distance in the loss, in reward units per nat")
    beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in jsd; towards 0 forward, 1 reverse KL")
    alone: bool = Field(
        True, description="train on the teacher alone, and only measure rewards; false: add it to the objective's loss"
    )
    hint: Literal["none", "answer", "solution"] = Field(
        "none", description="column of the problem that only the teacher sees, after the question"
    )
    hint_text: str = Field("\nA right solution: {hint}", description="text of the hint, with {hint} in it")

    @property
    def enabled(self) -> bool:
        """Whether the recipe has a teacher."""
        return bool(self.path or self.url)

    @property
    def is_self(self) -> bool:
        """Whether the policy teaches itself."""
        return self.path == "self"

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        changed = [key for key, spec in type(self).model_fields.items() if getattr(self, key) != spec.default]
        if changed and not self.enabled:
            raise ValueError(f"teacher.{changed[0]} is only used with teacher.path or teacher.url, which are empty")
        if urlsplit(self.path).scheme in ("http", "https"):
            raise ValueError(
                f"teacher.path = '{self.path}' is a server; set teacher.url to it, and teacher.model to its name"
            )
        if self.path and self.url:
            raise ValueError("teacher.path and teacher.url name two teachers; set one of them to empty")
        ignored = [key for key in (("dtype",) if self.url else OF_SERVED_TEACHERS) if key in changed]
        if ignored:
            raise ValueError(
                f"teacher.{ignored[0]} is only used with teacher.{'path' if self.url else 'url'}, which is empty"
            )
        if self.url:
            self._check_server()
        if self.path == "tiny":
            raise ValueError("teacher.path = 'tiny' is a model with random weights; give the folder of a trained one")
        if self.is_self and self.hint == "none":
            raise ValueError(
                "teacher.path = 'self' without a hint is the policy itself and teaches nothing; set teacher.hint = "
                "'answer' or 'solution'"
            )
        if self.is_self and self.dtype != "auto":
            raise ValueError("teacher.dtype is not used with teacher.path = 'self', which has the policy's weights")
        if "beta" in changed and self.kind != "jsd":
            raise ValueError(f"teacher.beta is only used with teacher.kind = 'jsd' (now '{self.kind}')")
        if "{hint}" not in self.hint_text:
            raise ValueError(f"teacher.hint_text = {self.hint_text!r} must contain {{hint}}")
        if "hint_text" in changed and self.hint == "none":
            raise ValueError("teacher.hint_text is only used with teacher.hint = 'answer' or 'solution' (now 'none')")
        return self

    def _check_server(self) -> None:
        _check_address("teacher.url", self.url, self.key_name or f"{self.engine.upper()}_API_KEY")
        if not self.model:
            raise ValueError("teacher.url needs teacher.model, the name of the model on that server")
        if self.kind != "sampled":
            raise ValueError(
                f"teacher.kind = '{self.kind}' needs the teacher's whole distribution at every token, and a server "
                "gives the probability of the sampled one; set teacher.kind = 'sampled', an unbiased estimate of the "
                "reverse KL, or load the teacher into this process with teacher.path"
            )


OF_REWARD_MODELS = ("dtype", "label")
OF_LANGUAGE_MODELS = (
    *("model", "rubric", "rubric_file", "low", "high", "max_tokens", "timeout_s", "retries", "num_requests"),
    *("key_name", "prompt_price", "reply_price", "budget", "mode", "opponents"),
)
"""Settings of one kind of judge, which the other refuses."""


class JudgeSection(Section):
    """A judge, whose scores of completions are the reward, or a part of it."""

    path: str = Field("", description="folder or hub id of a reward model for sequence classification; empty: none")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the reward model's weights; auto: bfloat16 where it is faster than float32"
    )
    url: str = Field(
        "", description="address of a language model that judges, before /v1/chat/completions (extra: server)"
    )
    model: str = Field("", description="name of that model on its server")
    rubric: str = Field("", description="what makes an answer good, for that model")
    rubric_file: str = Field("", description="text file with the rubric, in place of judge.rubric")
    mode: Literal["score", "pairwise"] = Field(
        "score", description="score: a grade for each completion; pairwise: its share of wins over others of its group"
    )
    opponents: int = Field(
        0, ge=0, description="pairwise: others that each completion is compared with, in both orders; 0: all"
    )
    low: float = Field(0.0, description="lowest grade that the model may give; its score is 0")
    high: float = Field(10.0, description="highest grade; its score is 1")
    max_tokens: int = Field(512, ge=1, description="tokens of one reply, the model's reasoning included")
    timeout_s: float = Field(60.0, gt=0, description="time limit of one attempt at a request in seconds")
    retries: int = Field(3, ge=0, description="retries of a request that failed for a reason that may pass")
    num_requests: int = Field(8, ge=1, description="requests at a time")
    key_name: str = Field("OPENAI_API_KEY", description="environment variable that holds the key, if one is needed")
    prompt_price: float = Field(0.0, ge=0, description="price of a million prompt tokens, for judge/cost")
    reply_price: float = Field(0.0, ge=0, description="price of a million reply tokens")
    budget: float = Field(0.0, ge=0, description="cost at which the run stops, in the currency of the prices; 0: none")
    label: str = Field(
        "", description="label of a reward model with several, whose probability is the score; empty: its one output"
    )
    weight: float = Field(1.0, gt=0, description="factor of the score in the reward")
    alone: bool = Field(
        True, description="the judge gives the whole reward, and verifiers only measure; false: it adds to theirs"
    )
    success_at: float = Field(
        0.5, description="score from which a completion counts as solved, in tasks without verifiers"
    )
    max_unscored: float = Field(
        0.5, ge=0, lt=1, description="largest share of completions without a score; above it the run stops"
    )

    @property
    def enabled(self) -> bool:
        """Return whether the recipe has a judge."""
        return bool(self.path or self.url)

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        changed = [key for key, spec in type(self).model_fields.items() if getattr(self, key) != spec.default]
        if changed and not self.enabled:
            raise ValueError(f"judge.{changed[0]} is only used with judge.path or judge.url, which are empty")
        if self.path and self.url:
            raise ValueError("judge.path and judge.url name two judges; set one of them to empty")
        other, own = (OF_LANGUAGE_MODELS, "url") if self.path else (OF_REWARD_MODELS, "path")
        ignored = [key for key in other if key in changed]
        if ignored:
            raise ValueError(f"judge.{ignored[0]} is only used with judge.{own}, which is empty")
        if self.url:
            self._check_language_model()
        return self

    def _check_language_model(self) -> None:
        _check_address("judge.url", self.url, self.key_name)
        if not self.model:
            raise ValueError("judge.url needs judge.model, the name of the model on that server")
        if bool(self.rubric) == bool(self.rubric_file):
            raise ValueError("judge.url needs either judge.rubric or judge.rubric_file")
        ignored = ("low", "high") if self.mode == "pairwise" else ("opponents",)
        for key in ignored:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"judge.{key} has no effect with judge.mode = '{self.mode}'")
        if not self.low < self.high:
            raise ValueError(f"judge.low = {self.low:g} must be below judge.high = {self.high:g}")
        if self.budget and not (self.prompt_price or self.reply_price):
            raise ValueError("judge.budget needs judge.prompt_price or judge.reply_price")


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


class TracesSection(Section):
    """The trace bank, which stores rollouts and supplies prefixes."""

    bank: str = Field("", description="SQLite file of the trace bank; empty: none")
    keep: Literal["all", "successes", "none"] = Field("all", description="rollouts of this run to store in the bank")


class PrefixSection(NamedSection):
    """Prompts that begin with part of a stored solution or trajectory; further keys belong to the named policy.

    The further keys, like ``--prefix.low 0.3``, are checked by ``heliostat.traces.cuts``.
    """

    name: str = Field(
        "none", description="'none', or the policy that cuts solutions: band, annealed, targeted, backtracking"
    )
    share: float = Field(0.75, gt=0, le=1, description="share of a step's problems that get a prefix")
    mode: Literal["prefix", "hint", "unrelated"] = Field(
        "prefix",
        description="prefix: the start of the answer; controls: hint shows it in the question, unrelated takes it "
        "from another problem",
    )
    separator: str = Field(
        "", description="cut solutions only directly after this text, which ends each of their steps; empty: anywhere"
    )


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
        if self.judge.enabled and self.environment.enabled:
            raise ValueError(
                "[judge] does not work with an environment, which gives its own rewards; remove one of them"
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
