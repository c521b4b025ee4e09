"""The sync of weights to a vLLM server through files, and the proof that the server uses them.

    weights changed? --save--> folder --reload--> server --probe--> trainer

The model is saved in a folder that both sides see, the server loads it and forgets its prefix cache, and a few sampled
tokens are compared with the trainer's own forward. The very first sync is tested with a changed output projection: a
server that keeps a stale head (seen with tied embeddings) cannot be told from a good one before the weights have moved
far. Where several processes train one model, one of them syncs and the others wait.

Left out: weights over NCCL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from heliostat.models import save_model
from heliostat.rollout.completions import CompletionBuilder
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import SamplingSettings
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.completions import CompletionClient
from heliostat.rollout.server.parity import ParityError, parity_gap
from heliostat.rollout.server.weights_fingerprint import weights_fingerprint
from heliostat.types import Prompt

NUM_PROBES = 2
PROBE_TOKENS = 32

RunOnMain = Callable[[Callable[[], str]], str]
"""Runs a function in one of the processes that share a model, and returns its result in all of them."""


def run_here(make: Callable[[], str]) -> str:
    """Run a function in this process, which shares its model with no other."""
    return make()


@dataclass(slots=True)
class ServedWeights:
    """The state of one server, shared by the engines that use it.

    Attributes:
        turn: held by one engine from its sync to its last completion.
        name: the name of the served model in requests; empty before the first sync.
        fingerprint: of the server's weights (``weights_fingerprint``); ``None`` where they are not known for certain.
    """

    turn: threading.Lock = field(default_factory=threading.Lock)
    name: str = ""
    fingerprint: tuple[int, ...] | None = None


@dataclass(slots=True)
class WeightSync:
    """Brings a server to the weights of one model before it samples.

    Attributes:
        sync_dir: folder that trainer and server see under the same path.
        max_gap: largest gap in nats that the probe accepts.
        run_on_main: runs the sync in one of the processes that sample together.
    """

    client: CompletionClient
    sync_dir: Path
    max_gap: float
    served: ServedWeights
    run_on_main: RunOnMain = run_here

    @property
    def server(self) -> Server:
        """The server whose weights are kept in sync."""
        return self.client.server

    def sync_weights(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Send the model's weights to the server, unless it has them already, and compare a few tokens.

        Args:
            prompts: continued by the probe; a process without prompts leaves the sync to the others.

        Raises:
            ServerError: the server cannot be used.
            ParityError: its log-probabilities are not those of the trainer's weights.
        """
        current = weights_fingerprint(self.client.loaded.model)
        if current == self.served.fingerprint:
            return
        self.served.fingerprint = None  # unknown until the sync is complete, since it may fail anywhere
        name = self.run_on_main(lambda: self._sync(prompts, settings))
        if name:
            self.served.name, self.served.fingerprint = name, current

    def _sync(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> str:
        """Send and compare; return the served model's name, or nothing where there is no prompt to compare with."""
        if not prompts:
            return ""
        if not self.served.name:
            self.served.name = self.client.served_name()
            self._self_test_sync(prompts, settings)
        self._send()
        self._probe(prompts, settings, "after its weights were updated")
        return self.served.name

    def _self_test_sync(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Sync once with every second row of the output projection doubled, which a stale head cannot follow."""
        weight = self.client.loaded.head.projection.weight
        assert isinstance(weight, torch.Tensor)
        kept = weight.data
        weight.data = kept.clone()  # changed in a copy: other models may share a frozen projection
        weight.data[::2] *= 2.0
        try:
            self._send()
            self._probe(prompts, settings, "after a rehearsal with a changed output projection")
        finally:
            weight.data = kept

    def _send(self) -> None:
        folder = (self.sync_dir / "weights").resolve()
        save_model(self.client.loaded, folder, tensors_of(self.client.loaded.model))
        self._control("/pause?mode=wait")
        try:
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._control("/collective_rpc", arguments)
            done = self._control("/reset_prefix_cache")
            if isinstance(done, dict) and not done.get("success", True):
                raise ServerError(f"rollout server {self.server.url} kept its prefix cache: others are using it")
        except ServerError:
            with suppress(ServerError):  # the first failure is the one to report
                self._control("/resume")
            raise
        self._control("/resume")

    def _control(self, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return self.server.post(path, body)
        except ServerError as error:
            if "status 404" in str(error):
                raise ServerError(f"{error}; start it with VLLM_SERVER_DEV_MODE=1 to let weights be updated") from None
            raise

    def _probe(self, prompts: Sequence[Prompt], settings: SamplingSettings, when: str) -> None:
        temperature = settings.temperature or 1.0
        limits = self.client.limits
        limits = replace(limits, max_new_tokens=min(PROBE_TOKENS, limits.max_new_tokens))
        builder = CompletionBuilder(self.client.loaded, limits)
        partials = [group[0] for group in builder.begin(SampleRequest(prompts, 1, settings, seed=0, policy_step=0))]
        for prompt, partial in zip(prompts, partials, strict=True):
            self.client.complete(self.served.name, prompt, [partial], SamplingSettings(temperature=temperature))
        completions = [builder.finish(partial) for partial in partials]
        gap = parity_gap(self.client.loaded, prompts, completions, temperature)
        if gap > self.max_gap:
            raise ParityError(
                f"rollout server {self.server.url} is {gap:.2g} nats from the trainer on a token {when}, more than the "
                f"bound of {self.max_gap:g} (rollout.max_parity_gap): it kept old weights (a tied output projection is "
                "the usual one), computes in another precision, or lacks --logprobs-mode processed_logprobs"
            )


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model.state_dict()`` without its hooks, which would shard sharded weights again."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors
