"""SGLang's routes, written against the source of 0.5.23 and not run; no mode has to be opened for them.

    update_weights_from_disk: waits for the running requests, loads, drops the prefix cache, names the weights

Three differences matter. ``top_k = 0`` is refused there, and -1 means all tokens. Two tokens of the context are
reserved: completions that reach into them are cut without a word. Seeds count only with
``--enable-deterministic-inference``, which gives every completion of a request the same seed, so each is a request.

Left out: ``/pause_generation``, whose modes abort or move running requests (an update waits for them), and weights from
memory or over NCCL.
"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_text
from heliostat.rollout.server.answers import Models, SGLangModel, SGLangSettings, parsed
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.dialect import ServedModel

RESERVED = 4
"""Tokens of a prompt with its completion beyond the longest prompt: that limit leaves five of the context free, and a
completion one."""

_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
_FAILED = frozenset({http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.INTERNAL_SERVER_ERROR})
_DTYPES = {"auto": "", "half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class SGLang:
    """SGLang's dialect; see ``Dialect``."""

    title: str = "SGLang 0.5.23"
    key_name: str = "SGLANG_API_KEY"

    def describe(self, server: Server) -> ServedModel:
        """See ``Dialect.describe``; sizes are those of the model's folder, where this machine sees it."""
        card = parsed(server, self.title, Models, server.get("/v1/models")).data[0]
        settings = parsed(server, self.title, SGLangSettings, server.get("/server_info"))
        model = parsed(server, self.title, SGLangModel, server.get("/model_info"))
        return ServedModel(
            card.id,
            settings.max_req_input_len + RESERVED,
            _DTYPES.get(settings.dtype, settings.dtype),
            sizes=_sizes_in(Path(model.model_path) / "config.json"),
            seeds_whole_requests=settings.enable_deterministic_inference,
        )

    def weight_version(self, server: Server) -> str:
        """See ``Dialect.weight_version``."""
        return parsed(server, self.title, SGLangModel, server.get("/model_info")).weight_version

    def load_weights(self, server: Server, folder: PathArg, version: str) -> None:
        """See ``Dialect.load_weights``; one request does it all, and a failed one is not tried again."""
        asked = {"model_path": as_text(folder), "flush_cache": True, "weight_version": version}
        try:
            server.post("/update_weights_from_disk", asked, final=_FAILED)
        except ServerError as error:
            if error.status not in _FAILED:
                raise
            raise ServerError(
                f"{error}; it could not load the weights in {folder} and may be broken from now on: see that it serves "
                "the recipe's model and sees this folder, restart the server, then continue the run"
            ) from None

    def mark_weights(self, server: Server, version: str) -> None:
        """See ``Dialect.mark_weights``."""
        server.post("/update_weight_version", {"new_version": version, "abort_all_requests": False})

    def load_adapter(self, server: Server, name: str, folder: PathArg) -> None:
        """See ``Dialect.load_adapter``."""
        try:
            server.post("/load_lora_adapter", {"lora_name": name, "lora_path": as_text(folder)}, final=_FAILED)
        except ServerError as error:
            if not error.status:  # it did not answer
                raise
            raise ServerError(
                f"{error}; to load adapters, start it with --enable-lora, --max-lora-rank of at least lora.rank and "
                "--lora-target-modules all",
                error.status,
            ) from None

    def unload_adapter(self, server: Server, name: str) -> None:
        """See ``Dialect.unload_adapter``."""
        server.post("/unload_lora_adapter", {"lora_name": name})

    def completion_request(self, model: str, adapter: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Dialect.completion_request``."""
        return {**body, "model": model, "top_k": body["top_k"] or -1} | ({"lora_path": adapter} if adapter else {})


def _sizes_in(path: Path) -> dict[str, int]:
    """Return the sizes in a model's configuration; none if this machine does not see it."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    config = config.get("text_config", config) if isinstance(config, dict) else {}
    return {key: config[key] for key in _SIZES if isinstance(config.get(key), int)}
