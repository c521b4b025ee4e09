"""The rollout engine on a running vLLM server: token ids in and out, log-probabilities, weights handed over in files.

    weights changed? --save--> folder --reload--> server --probe--> trainer
    prompt ids --/v1/completions, n = group size--> token ids, log-probs, why each ended

What is sampled always comes from the engine's own model: before a sample whose weights differ from those sent last, the
model is saved in a folder that both sides see, the server loads it and forgets its prefix cache, and a few sampled
tokens are compared with the trainer's own forward. Engines on twins of the model (``beside``) take turns: one has the
server from the hand-over to the last completion. The very first hand-over is rehearsed with a changed output
projection, since a server that keeps a stale head (seen with tied embeddings) cannot be told from a good one before
the weights have moved far. Where several processes train one model, one of them hands over and the others wait.

The server is started with VLLM_SERVER_DEV_MODE=1 and ``--logprobs-mode processed_logprobs``, so that log-probabilities
are those at the sampling temperature; prefix caching is on by default. Written for vLLM 0.32, whose routes were read
from its sources.

Left out: weights over NCCL, and exact entropies, which the server does not tell: the
entropy of a token's distribution is estimated by that token's ``-log p``, whose mean is the entropy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliostat.models import LoadedModel, save_model
from heliostat.rollout.drafts import Announce, DecodeLimits, Draft, Harvest, Scribe
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.mark import weights_mark
from heliostat.rollout.parity import ParityError, parity_gap
from heliostat.rollout.sampling import SamplingSettings
from heliostat.rollout.server import Server, ServerError, shortened
from heliostat.types import Group, Prompt, StopReason

NUM_PROBES = 2
PROBE_TOKENS = 32
MAX_LOGP = 1e-3
"""Above 0 by rounding, not by more."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class _Strict(BaseModel):
    """An answer's part: what is asked for must have its type, what else is there is not read."""

    model_config = ConfigDict(strict=True)


class _LogProbs(_Strict):
    token_logprobs: list[float]


class _Choice(_Strict):
    index: int
    token_ids: list[int]
    logprobs: _LogProbs
    finish_reason: str


class _Completions(_Strict):
    choices: list[_Choice]


class _Served(_Strict):
    id: str


class _Models(_Strict):
    data: list[_Served] = Field(min_length=1)


Lead = Callable[[Callable[[], str]], str]
"""Calls a function in one of the processes that share a model, and returns its result in all of them."""


def alone(make: Callable[[], str]) -> str:
    """The lead of a process that has its model to itself."""
    return make()


@dataclass(slots=True)
class Held:
    """What the server holds; shared by the engines that use it.

    Attributes:
        turn: whose turn it is: one engine's, from its hand-over to its last completion.
        name: what the server calls its model; empty before the first hand-over.
        mark: of the weights that it has (``weights_mark``); ``None`` where that is not certain.
    """

    turn: threading.Lock = field(default_factory=threading.Lock)
    name: str = ""
    mark: tuple[int, ...] | None = None


class VllmEngine:
    """A client of one vLLM server that serves the model being trained.

    Args:
        sync_dir: folder that trainer and server see under the same path.
        num_requests: prompts in flight at once.
        max_gap: largest gap in nats that the probe accepts.
        held: what the server holds, where other engines use it too.
        lead: in which process weights are handed over, where several sample together, each its own prompts.

    **Limits**: the tokens' log-probabilities are the trainer's within ``max_gap``, or sampling raises ``ParityError``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        limits: DecodeLimits,
        server: Server,
        sync_dir: Path,
        num_requests: int,
        max_gap: float,
        held: Held | None = None,
        lead: Lead = alone,
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        self.scribe = Scribe(loaded, limits)
        self.server = server
        self.sync_dir = sync_dir
        self.num_requests = num_requests
        self.max_gap = max_gap
        self.counts = RolloutCounts()
        self.held = held or Held()
        self.lead = lead
        self.way = f"the rollout server at {server.url}"

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        settings: SamplingSettings,
        *,
        seed: int,
        policy_step: int,
        announce: Announce | None = None,
    ) -> list[Group]:
        """Sample a group for every prompt; see ``Engine.sample``.

        Raises:
            ServerError: the server gave no usable answer.
            ParityError: its log-probabilities are not those of the trainer's weights.
        """
        drafts = self.scribe.begin(prompts, group_size, seed)
        harvest = Harvest(self.scribe, prompts, drafts, policy_step, announce)
        with self.held.turn:
            self._hand_over(prompts[:NUM_PROBES], settings)
            with ThreadPoolExecutor(self.num_requests) as pool:
                for _ in pool.map(self._complete, prompts, drafts, repeat(settings)):
                    harvest.gather()
        for prompt, group in zip(prompts, drafts, strict=True):
            self._count(prompt, group)
        return harvest.groups()

    def take_counts(self) -> RolloutCounts:
        """What the server had to compute at least, from token counts."""
        counts, self.counts = self.counts, RolloutCounts()
        return counts

    def beside(self, loaded: LoadedModel) -> VllmEngine:
        """See ``Engine.beside``; the server is the same."""
        server = replace(self.server)  # connections of its own
        settings = (self.limits, server, self.sync_dir, self.num_requests, self.max_gap)
        return VllmEngine(loaded, *settings, held=self.held, lead=self.lead)

    def stop(self) -> None:
        """See ``Engine.stop``; its requests are broken off, which a server takes as a wish to end them."""
        self.server.abort()

    # -- completions ------------------------------------------------------------------------------------------------

    def _complete(self, prompt: Prompt, drafts: Sequence[Draft], settings: SamplingSettings) -> None:
        """Fill in one prompt's drafts."""
        body = {
            "model": self.held.name,
            "prompt": list(prompt.context_ids),
            "n": len(drafts),
            "seed": drafts[0].seed,
            "max_tokens": drafts[0].num_left,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop": list(self.limits.stop),
            "stop_token_ids": sorted(self.loaded.eos_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        choices = self._read(_Completions, self.server.post("/v1/completions", body)).choices
        if sorted(choice.index for choice in choices) != list(range(len(drafts))):
            raise self._wrong(f"{len(choices)} completions where {len(drafts)} were asked for")
        for choice in choices:
            self._fill(drafts[choice.index], choice)

    def _fill(self, draft: Draft, choice: _Choice) -> None:
        ids, logps = choice.token_ids, choice.logprobs.token_logprobs
        if not 1 <= len(ids) <= draft.num_left or len(ids) != len(logps):
            raise self._wrong(f"{len(ids)} tokens with {len(logps)} log-probabilities, of at most {draft.num_left}")
        size = self.loaded.model.config.get_text_config().vocab_size
        if not all(0 <= token < size for token in ids) or not all(
            math.isfinite(logp) and logp < MAX_LOGP for logp in logps
        ):
            raise self._wrong("token ids outside the vocabulary, or log-probabilities that are not finite or above 0")
        stop_reason = self._stop_reason(draft, choice)
        draft.token_ids, draft.logp, draft.entropy = list(ids), list(logps), [-logp for logp in logps]
        draft.stop_reason = stop_reason

    def _stop_reason(self, draft: Draft, choice: _Choice) -> StopReason:
        if choice.token_ids[-1] in self.loaded.eos_ids:
            return StopReason.EOS
        if choice.finish_reason == "stop" and self.scribe.holds_stop_string(choice.token_ids):
            return StopReason.STOP_STRING
        if choice.finish_reason == "length" and len(choice.token_ids) == draft.num_left:
            return draft.out_of_room
        reason = shortened(choice.finish_reason, 40)
        raise self._wrong(
            f"a completion of {len(choice.token_ids)} tokens that ended by '{reason}', for no reason that the request "
            "gave"
        )

    def _read(self, kind: type[_Answer], answer: Any) -> _Answer:
        """An answer as what it should be."""
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "its whole"
            raise self._wrong(f"{shortened(first['msg'])} at '{where}'") from None

    def _wrong(self, what: str) -> ServerError:
        return ServerError(
            f"rollout server {self.server.url} answered with {what}; is it vLLM 0.32 or newer, serving this model?"
        )

    def _count(self, prompt: Prompt, drafts: Sequence[Draft]) -> None:
        length = len(prompt.context_ids)
        self.counts.prefills += 1
        self.counts.prompt_tokens += length
        self.counts.prompt_attended += length * (length + 1) // 2
        for draft in drafts:
            fed = len(draft.token_ids) - 1  # the last token is sampled and never fed back
            self.counts.decode_steps = max(self.counts.decode_steps, fed)
            self.counts.decoded_rows += fed
            self.counts.decoded_attended += fed * length + fed * (fed + 1) // 2

    # -- weights ----------------------------------------------------------------------------------------------------

    def _hand_over(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Give the server this engine's weights, if they are not those it has."""
        current = weights_mark(self.loaded.model)
        if current == self.held.mark:
            return
        self.held.mark = None  # until it is known again: a hand-over may break off anywhere
        name = self.lead(lambda: self._give(prompts, settings))
        if name:
            self.held.name, self.held.mark = name, current

    def _give(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> str:
        """Send the weights and compare; returns what the server calls its model, or nothing if nothing is asked."""
        if not prompts:
            return ""
        if not self.held.name:
            self.held.name = self._served_model()
            self._rehearse(prompts, settings)
        self._send()
        self._probe(prompts, settings, "after its weights were updated")
        return self.held.name

    def _rehearse(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Hand over a changed output projection: a copy, since a frozen one is the trained model's as well."""
        weight = self.loaded.head.projection.weight
        assert isinstance(weight, torch.Tensor)
        kept = weight.data
        weight.data = kept.clone()
        weight.data[::2] *= 2.0
        try:
            self._send()
            self._probe(prompts, settings, "after a rehearsal with a changed output projection")
        finally:
            weight.data = kept

    def _served_model(self) -> str:
        return self._read(_Models, self.server.get("/v1/models")).data[0].id

    def _send(self) -> None:
        folder = (self.sync_dir / "weights").resolve()
        save_model(self.loaded, folder, tensors_of(self.loaded.model))
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
        limits = replace(self.limits, max_new_tokens=min(PROBE_TOKENS, self.limits.max_new_tokens))
        scribe = Scribe(self.loaded, limits)
        drafts = [group[0] for group in scribe.begin(prompts, 1, seed=0)]
        for prompt, draft in zip(prompts, drafts, strict=True):
            self._complete(prompt, [draft], SamplingSettings(temperature=temperature))
        gap = parity_gap(self.loaded, prompts, [scribe.finish(draft) for draft in drafts], temperature)
        if gap > self.max_gap:
            raise ParityError(
                f"rollout server {self.server.url} is {gap:.2g} nats from the trainer on a token {when}, more than the "
                f"bound of {self.max_gap:g} (rollout.max_parity_gap): it kept old weights (a tied output projection is "
                "the usual one), computes in another precision, or lacks --logprobs-mode processed_logprobs"
            )


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What ``model.state_dict()`` holds, without its hooks: those of cut weights would cut them again on one rank."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors
