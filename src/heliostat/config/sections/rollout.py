"""The section ``rollout``: how completions are sampled, in this process or on a server.

Left out: turns of an environment (``task``), and the answers of a judge (``judge``).
"""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from heliostat.config.sections.base import Section

SERVERS = ("vllm", "sglang")
"""Engines that sample on a server."""

DROPS_WEIGHTS = 2
"""The level of sleep at which a server loses its weights."""


class RolloutSection(Section):
    """Settings of how completions are sampled."""

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
    num_workers: int = Field(
        0,
        ge=0,
        description="decoding threads in this process, each with a share of the prompts; 0: one per torch thread, up "
        "to 4, where each has enough to compute, on a CPU, and else one with passes on one thread; one with "
        "rollout.max_staleness",
    )
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
    def decode_workers(self) -> int:
        """Decoding threads; 0 to choose by threads and rows, as in ``rollout.num_workers``.

        Workers change torch's number of threads while they run, which an update in parallel would see.
        """
        return self.num_workers or int(self.max_staleness > 0)

    @property
    def on_server(self) -> bool:
        """Return whether completions come from a server."""
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
                f"'{self.engine}'); leave it out"
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
