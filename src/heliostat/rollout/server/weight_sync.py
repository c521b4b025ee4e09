"""The sync of weights to a server through files, and the proof that the server uses them.

    weights changed? --save--> folder --reload--> server --probe--> trainer

Before the first sync the server is compared with the model (``fit``). Then the model is saved in a folder that both
sides see, the server loads it and forgets its prefix cache, and a few sampled tokens are compared with the trainer's
own forward. The very first sync is tested with a changed output projection: a server that keeps a stale head (seen with
tied embeddings) cannot be told from a good one before the weights have moved far. Where the model has adapters and the
server can load them, the adapter alone is sent (``adapter_sync``). Every sync leaves a mark
(``holder``), which is read before and after sampling. Where several processes train one model, one of them syncs and
the others wait.

Left out: the ways of sending (``adapter_sync``, ``nccl_transfer``), and the sleep of a server (``vllm_sleep``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from heliostat.models import save_model
from heliostat.models.lora import is_adapted, perturbed_adapters
from heliostat.rollout.completions import CompletionBuilder
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import SamplingSettings
from heliostat.rollout.server.adapter_sync import AdapterSlot, send_adapter, withdraw_adapter
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.completions import CompletionClient
from heliostat.rollout.server.dialect import Dialect, ServedModel
from heliostat.rollout.server.fit import check_model, check_request
from heliostat.rollout.server.holder import Marks, is_marked, lost_server, refuse_other_run
from heliostat.rollout.server.model_tensors import tensors_of
from heliostat.rollout.server.nccl_transfer import NcclTransfer
from heliostat.rollout.server.parity import ParityError, Probe
from heliostat.rollout.server.vllm_sleep import VllmSleep
from heliostat.rollout.server.weights_fingerprint import weights_fingerprint
from heliostat.types import Prompt

NUM_PROBES = 2
PROBE_TOKENS = 32

SyncedParts = Literal["auto", "weights", "adapter"]
"""The parts of a model that a sync sends."""

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
        model: the server's account of its model; ``None`` before the first sync.
        marks: that the syncs leave.
        adapter: the adapter on the server.
        adapter_only: whether syncs send the adapter alone, as the set-up decided.
        fingerprint: of the server's weights (``weights_fingerprint``); ``None`` where they are not known for certain.
        is_asleep: whether the server was put to sleep and not woken since.
    """

    turn: threading.Lock = field(default_factory=threading.Lock)
    model: ServedModel | None = None
    marks: Marks = field(default_factory=Marks)
    adapter: AdapterSlot = field(default_factory=AdapterSlot)
    adapter_only: bool = False
    fingerprint: tuple[int, ...] | None = None
    is_asleep: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """The names of the served model and of the adapter on it, which may be empty."""
        assert self.model is not None, "the first sync asks for the model"
        return self.model.name, self.adapter.name


@dataclass(slots=True)
class WeightSync:
    """Brings a server to the weights of one model before it samples.

    Attributes:
        sync_dir: folder that trainer and server see under the same path.
        max_gap: largest gap in nats that the probe accepts.
        parts: ``"weights"``: the whole model; ``"adapter"``: the adapter alone; ``"auto"``: the adapter where the model
            has one and the server can load it.
        run_on_main: runs the sync in one of the processes that sample together.
        sleep: the way to put the server to sleep; ``None``: it stays awake.
        transfer: the way of the whole model over NCCL; ``None``: through files in ``sync_dir``.
    """

    client: CompletionClient
    sync_dir: Path
    max_gap: float
    served: ServedWeights
    run_on_main: RunOnMain = run_here
    parts: SyncedParts = "auto"
    sleep: VllmSleep | None = None
    transfer: NcclTransfer | None = None

    @property
    def server(self) -> Server:
        """The server whose weights are kept in sync."""
        return self.client.server

    @property
    def dialect(self) -> Dialect:
        """The server's dialect."""
        return self.client.dialect

    def sync_weights(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Send the model's weights to the server, unless it has them already, and compare a few tokens.

        Args:
            prompts: to sample; the first of them are continued by the probe, and a process without prompts leaves the
                sync to the others.

        Raises:
            ServerError: the server cannot be used for this model and these prompts, or another run uses it.
            ParityError: its log-probabilities are not those of the trainer's weights.
        """
        current = weights_fingerprint(self.client.loaded.model)
        is_new = current != self.served.fingerprint
        if self.served.is_asleep:
            _free_cached_memory()
            self.run_on_main(lambda: "freed")  # the server takes its memory back once no process holds it
            self.served.is_asleep = False  # a woken server is asked again, and so is one that could not be woken
        if is_new or self.run_on_main(self._keep) == "lost":
            self.served.fingerprint = None  # unknown until the sync is complete, since it may fail anywhere
            told = json.loads(self.run_on_main(lambda: self._sync(prompts, settings)))
            if told:
                self.served.marks.current, self.served.model = told["mark"], ServedModel(**told["model"])
                self.served.adapter.name = told["adapter"]
                self.served.fingerprint = current
        self._check_request(prompts, settings)

    def confirm_weights(self) -> None:
        """Refuse the completions that have just come if another run may have changed the weights meanwhile.

        Raises:
            ServerError: the server's weights are not those of the last sync.
        """
        version = self.dialect.weight_version(self.server)
        if version != self.served.marks.current:
            self.served.fingerprint = None
            raise lost_server(self.server, version)

    def rest(self) -> None:
        """Let the server sleep until the next sync, where that is wanted; all processes call it together.

        Raises:
            ServerError: it cannot sleep, or another run uses it.
        """
        if self.sleep is None or self.served.is_asleep:
            return
        self.run_on_main(self._fall_asleep)
        self.served.is_asleep = True
        if self.sleep.drops_weights:
            self.served.fingerprint = None

    def _fall_asleep(self) -> str:
        assert self.sleep is not None, "a server that stays awake was to sleep"
        if self.served.model is None:
            self._meet()
        else:
            self._has_mark()
        self.sleep.fall_asleep(self.server)
        return "asleep"

    def _keep(self) -> str:
        """Return whether the server still has the weights of the last sync, and wake it if it has."""
        if not self._has_mark():
            return "lost"
        if self.sleep is not None:
            self.sleep.wake_up(self.server)
        return "kept"

    def _meet(self) -> ServedModel:
        """Ask for the server's model; refuse one that does not fit, or that another run uses.

        Raises:
            ServerError: as said.
        """
        model = self.dialect.describe(self.server)
        check_model(self.server, model, self.client.loaded, self.max_gap)
        if self.sleep is not None and model.sleep_advice:
            raise ServerError(
                f"rollout server {self.server.url} cannot sleep (rollout.sleep_level = {self.sleep.level}): "
                f"{model.sleep_advice}"
            )
        refuse_other_run(self.server, self.dialect.weight_version(self.server))
        return model

    def _has_mark(self) -> bool:
        """Return whether the server still has the weights of the last sync; one that was started anew has not.

        Raises:
            ServerError: it has those of another run.
        """
        version = self.dialect.weight_version(self.server)
        if not self.served.marks.is_own(version):
            if is_marked(version):
                raise lost_server(self.server, version)
            self.served.model = None  # started anew, so everything is asked and tried again
        return version == self.served.marks.current

    def _sync(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> str:
        """Send and compare; return mark and model as JSON, or nothing where there is no prompt to compare with."""
        if not prompts:
            return "{}"
        if self.served.model is not None:
            self._has_mark()
        if self.served.model is None:
            self.served.model = self._meet()
            if self.transfer is not None:
                self.transfer.close()  # with a server that was there before
            self._check_request(prompts, settings)
            self.served.adapter, self.served.adapter_only = AdapterSlot(), False
            if not self._can_send_adapter(prompts[:NUM_PROBES], settings):
                self._self_test_sync(prompts[:NUM_PROBES], settings)
        self._send()
        self._refuse_gap(self._probe(prompts[:NUM_PROBES], settings), "after its weights were updated")
        told = {"mark": self.served.marks.current, "adapter": self.served.adapter.name}
        return json.dumps(told | {"model": dataclasses.asdict(self.served.model)})

    def _check_request(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        if self.served.model is not None:
            limit = self.client.limits.max_new_tokens
            check_request(self.server, self.served.model, self.client.loaded, prompts, limit, settings.temperature)

    def _can_send_adapter(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> bool:
        """Rehearse the sync of an adapter that changes every layer, and decide whether syncs are of adapters alone.

        Raises:
            ServerError, ParityError: it failed although the recipe asks for it.
        """
        drops_base = self.sleep is not None and self.sleep.drops_weights
        if self.parts == "weights" or drops_base or not is_adapted(self.client.loaded.model):
            return False
        self.served.adapter_only = True
        try:
            with perturbed_adapters(self.client.loaded.model, seed=0):
                self._send()
                self._refuse_gap(self._probe(prompts, settings), "after a rehearsal with a changed adapter")
        except (ServerError, ParityError) as error:
            self.served.adapter_only = False
            withdraw_adapter(self.served.adapter, self.server, self.dialect)
            if self.parts == "adapter":
                raise
            text = f"every sync sends the whole model, since its adapter alone did not work: {error}"
            warnings.warn(f"{text} (rollout.sync = 'weights' says so from the start)", stacklevel=2)
        return self.served.adapter_only

    def _self_test_sync(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Sync once with every second row of the output projection doubled, which a stale head cannot follow."""
        weight = self.client.loaded.head.projection.weight
        assert isinstance(weight, torch.Tensor)
        kept = weight.data
        weight.data = kept.clone()  # changed in a copy: other models may share a frozen projection
        weight.data[::2] *= 2.0
        try:
            self._send()
            probe = self._probe(prompts, settings)
            gap = probe.gap(self.client.loaded)
            if gap <= self.max_gap:
                return
            reason = probe.reason(self.client.loaded, self.max_gap)
            stale = self._gap_of_stale_head(probe, kept)
        finally:
            weight.data = kept
        stale = min(stale, probe.gap(self.client.loaded))
        if stale <= self.max_gap:
            reason = (
                f"with the unchanged one it is {stale:.2g} nats away, so it kept the old one although it reported "
                "success (a tied output projection is the usual one); use another build of the server, or a model "
                "without tied embeddings"
            )
        when = "after a rehearsal with a changed output projection"
        raise ParityError(f"{self._gap_text(gap, when)}: {reason}")

    def _gap_of_stale_head(self, probe: Probe, kept: torch.Tensor) -> float:
        """Return the gap to a model whose embedding has changed and whose tied output projection has not."""
        projection = self.client.loaded.head.projection
        weight = projection._parameters.get("weight")
        if weight is None:  # an adapter's layer, which stands for another one
            return math.inf
        projection.weight = torch.nn.Parameter(kept, requires_grad=False)
        try:
            return probe.gap(self.client.loaded)
        finally:
            projection.weight = weight

    def _send(self) -> None:
        loaded, marks = self.client.loaded, self.served.marks
        if self.served.adapter_only:
            send_adapter(self.served.adapter, loaded, self.server, self.dialect, self.sync_dir, marks)
            return
        if self.transfer is not None:
            self.transfer.send(loaded, self.server, marks.renew())
            return
        folder = (self.sync_dir / "weights").resolve()
        save_model(loaded, folder, tensors_of(loaded.model))
        self.dialect.load_weights(self.server, folder, marks.renew())

    def _probe(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Probe:
        temperature = settings.temperature or 1.0
        limits = self.client.limits
        limits = replace(limits, max_new_tokens=min(PROBE_TOKENS, limits.max_new_tokens))
        builder = CompletionBuilder(self.client.loaded, limits)
        partials = [group[0] for group in builder.begin(SampleRequest(prompts, 1, settings, seed=0, policy_step=0))]
        for prompt, partial in zip(prompts, partials, strict=True):
            self.client.complete(self.served.names, prompt, [partial], SamplingSettings(temperature=temperature))
        assert self.served.model is not None
        return Probe(prompts, [builder.finish(partial) for partial in partials], temperature, self.served.model.dtype)

    def _refuse_gap(self, probe: Probe, when: str) -> None:
        gap = probe.gap(self.client.loaded)
        if gap > self.max_gap:
            raise ParityError(f"{self._gap_text(gap, when)}: {probe.reason(self.client.loaded, self.max_gap)}")

    def _gap_text(self, gap: float, when: str) -> str:
        return (
            f"rollout server {self.server.url} is {gap:.2g} nats from the trainer on a token {when}, more than the "
            f"bound of {self.max_gap:g} (rollout.max_parity_gap)"
        )


def _free_cached_memory() -> None:
    """Return the GPU memory that torch keeps for later to the driver, where a GPU is used."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
