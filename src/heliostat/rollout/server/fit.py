"""The comparison of a server with the model and the recipe, before any weights are sent to it.

A model of other sizes would break the server for good, a shorter limit would cut completions short, and another dtype
or other log-probabilities would only show as a gap. Names are not compared: a model has one name at a hub and others
in folders.

Left out: the weights themselves, which are compared by tokens (``parity``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heliostat.models import LoadedModel
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.dialect import ServedModel
from heliostat.rollout.server.parity import PARITY_BOUNDS
from heliostat.types import Prompt

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_model(server: Server, served: ServedModel, loaded: LoadedModel, max_gap: float) -> None:
    """Refuse a server with a model of other sizes, or in a dtype that ``max_gap`` leaves no room for.

    Raises:
        ServerError: the server does not fit.
    """
    config = loaded.model.config.get_text_config()
    for key, theirs in served.sizes.items():
        ours = getattr(config, key, theirs)
        if ours != theirs:
            raise ServerError(
                f"rollout server {server.url} serves another model ('{served.name}'): {key} is {theirs} there and "
                f"{ours} in '{loaded.name}'; start the server with the recipe's model (nothing was sent to it)"
            )
    dtype = _DTYPES.get(served.dtype, loaded.model.dtype)
    if dtype != loaded.model.dtype and max_gap < max(_bound(dtype), _bound(loaded.model.dtype)):
        ours_text = str(loaded.model.dtype).removeprefix("torch.")
        raise ServerError(
            f"rollout server {server.url} computes in {served.dtype} and the trainer in {ours_text}: start it with "
            f"--dtype {ours_text}, set model.dtype, or accept the difference with rollout.max_parity_gap = "
            f"{max(_bound(dtype), _bound(loaded.model.dtype)):g}"
        )


def check_request(
    server: Server,
    served: ServedModel,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Refuse completions that the server would cut, or whose log-probabilities would be at another temperature.

    Raises:
        ServerError: the server does not fit this request.
    """
    if served.raw_logp_advice and temperature not in (0.0, 1.0):
        raise ServerError(
            f"rollout server {server.url} returns log-probabilities at temperature 1, and this samples at "
            f"{temperature:g}: {served.raw_logp_advice}"
        )
    longest = max((len(prompt.context_ids) for prompt in prompts), default=0)
    needed = min(longest + max_new_tokens, loaded.context_length)
    if served.max_length is not None and needed > served.max_length:
        raise ServerError(
            f"rollout server {server.url} serves at most {served.max_length} tokens, prompt included, and would cut "
            f"completions: {longest} prompt tokens and rollout.max_new_tokens = {max_new_tokens} need {needed}; start "
            "it with a larger limit (vLLM: --max-model-len, SGLang: --context-length), or set rollout.max_new_tokens"
        )


def _bound(dtype: torch.dtype) -> float:
    return PARITY_BOUNDS.get(dtype, PARITY_BOUNDS[torch.bfloat16])
