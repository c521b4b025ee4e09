"""vLLM's routes, as 0.32 has them; a development mode opens those that change weights.

    pause --> collective_rpc(reload_weights) --> reset_prefix_cache --> update_weight_version --> resume
    asleep: wake weights --> collective_rpc(reload_weights) --> update_weight_version --> wake caches

Its checksums of weights (``/weight_checker``) are not used: a CPU build packs weights and then reports the checksum of
nothing, whereas versions of weights are exact everywhere.

Left out: the transfer of weights between GPUs (``/update_weights``), which needs a server started for it.
"""

from __future__ import annotations

import http
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from heliostat.arguments import PathArg, as_text
from heliostat.rollout.server.answers import Inspection, Models, ModelSettings, WeightInfo, parsed
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.dialect import ServedModel
from heliostat.rollout.server.vllm_requests import get_dev, post_dev
from heliostat.rollout.server.vllm_sleep import wake_caches, wake_up, wake_weights

PROCESSED = "processed_logprobs"
"""The mode that returns log-probabilities at the sampling temperature."""

_FAILED = frozenset({http.HTTPStatus.INTERNAL_SERVER_ERROR})
_LAYERS = re.compile(r"^ *\((\d+)(?:-(\d+))?\): (?:\d+ x )?\w*DecoderLayer\(", re.MULTILINE)
_VOCABULARY = re.compile(r"VocabParallelEmbedding\(.*?embedding_dim=(\d+), org_vocab_size=(\d+)")


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's dialect; see ``Dialect``."""

    title: str = "vLLM 0.32"
    key_name: str = "VLLM_API_KEY"

    def describe(self, server: Server) -> ServedModel:
        """See ``Dialect.describe``."""
        card = parsed(server, self.title, Models, server.get("/v1/models")).data[0]
        settings = parsed(server, self.title, ModelSettings, get_dev(server, "/server_info?config_format=json"))
        model = settings.vllm_config.model_config_
        asked = {"method": "get_model_inspection"}
        inspected = parsed(server, self.title, Inspection, post_dev(server, "/collective_rpc", asked))
        advice = "" if model.logprobs_mode == PROCESSED else f"start it with --logprobs-mode {PROCESSED}"
        return ServedModel(
            card.id,
            card.max_model_len,
            model.dtype.removeprefix("torch."),
            advice,
            sizes_of(inspected.results),
            sleep_advice="" if model.enable_sleep_mode else "start it with --enable-sleep-mode",
        )

    def weight_version(self, server: Server) -> str:
        """See ``Dialect.weight_version``."""
        return parsed(server, self.title, WeightInfo, get_dev(server, "/weight_info")).weight_version

    def load_weights(self, server: Server, folder: PathArg, version: str) -> None:
        """See ``Dialect.load_weights``; a server that failed to load is not tried again, since it is then broken.

        A server that sleeps has no requests and no caches, and takes the weights before it gets its caches back.
        """
        update_halted(server, version, lambda: _reload(server, folder))

    def mark_weights(self, server: Server, version: str) -> None:
        """See ``Dialect.mark_weights``."""
        _mark(server, version)

    def load_adapter(self, server: Server, name: str, folder: PathArg) -> None:
        """See ``Dialect.load_adapter``; a server that sleeps is woken."""
        wake_up(server)
        asked = {"lora_name": name, "lora_path": as_text(folder)}
        try:
            server.post("/v1/load_lora_adapter", asked, final=_FAILED, is_json=False)
        except ServerError as error:
            if not error.status:  # it did not answer
                raise
            raise ServerError(
                f"{error}; to load adapters, start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and "
                "--max-lora-rank of at least lora.rank",
                error.status,
            ) from None

    def unload_adapter(self, server: Server, name: str) -> None:
        """See ``Dialect.unload_adapter``; a server that sleeps is woken."""
        wake_up(server)
        server.post("/v1/unload_lora_adapter", {"lora_name": name}, is_json=False)

    def completion_request(self, model: str, adapter: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Dialect.completion_request``; an adapter is named like a model."""
        return {**body, "model": adapter or model}


def update_halted(server: Server, version: str, load: Callable[[], None]) -> None:
    """Change a server's weights by ``load`` while it answers no request, and give them a name.

    Raises:
        ServerError: the weights may not have been changed.
    """
    if wake_weights(server):
        load()
        _mark(server, version)
        wake_caches(server)
        return
    post_dev(server, "/pause?mode=wait")
    try:
        load()
        done = post_dev(server, "/reset_prefix_cache")
        if isinstance(done, dict) and not done.get("success", True):
            raise ServerError(f"rollout server {server.url} kept its prefix cache: others are using it")
        _mark(server, version)
    except ServerError:
        with suppress(ServerError):  # the first failure is the one to report
            post_dev(server, "/resume")
        raise
    post_dev(server, "/resume")


def _mark(server: Server, version: str) -> None:
    post_dev(server, "/update_weight_version", {"new_version": version})


def _reload(server: Server, folder: PathArg) -> None:
    asked = {"method": "reload_weights", "kwargs": {"weights_path": as_text(folder)}}
    try:
        server.post("/collective_rpc", asked, final=_FAILED)
    except ServerError as error:
        if error.status != http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        raise ServerError(
            f"{error}; it could not load the weights in {folder} and is broken from now on: see that it serves the "
            "recipe's model and sees this folder, restart the server, then continue the run"
        ) from None


def sizes_of(inspections: Sequence[str]) -> dict[str, int]:
    """Return the sizes that vLLM's printed modules show, one text a worker; each worker may hold some of the layers."""
    layers = {
        place
        for text in inspections
        for first, last in _LAYERS.findall(text)
        for place in range(int(first), int(last or first) + 1)
    }
    sizes = {"num_hidden_layers": len(layers)} if layers else {}
    for width, vocabulary in (match.groups() for match in map(_VOCABULARY.search, inspections) if match):
        sizes |= {"hidden_size": int(width), "vocab_size": int(vocabulary)}
    return sizes
