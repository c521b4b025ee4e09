"""Probe a model's behaviour instead of relying on its name: is it causal, and what is in its cache?

A probe is a forward of a few tokens without gradient. Left out: anything that needs a real prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from heliostat.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CacheKind = Literal["kv", "other"]

PROBE_LENGTH = 6


@contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients and dropout inside the block; every module's mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    nn.Module.eval(model)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def num_embedded_ids(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding; often a few more than the tokenizer has ids."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def probe_ids(model: PreTrainedModel) -> Int[Tensor, "1 token"]:
    """Return six different ids in the middle of the vocabulary, away from the special ones at its ends."""
    vocab_size = num_embedded_ids(model)
    ids = torch.arange(PROBE_LENGTH) + max(0, vocab_size // 2 - PROBE_LENGTH)
    return (ids % vocab_size)[None].to(model.device)


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Check that a forward runs, and that a later token does not change an earlier prediction, as training assumes.

    Raises:
        ConfigError: it does not run in this dtype on this device, or it is a bidirectional encoder.
    """
    ids = probe_ids(model)
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    with probing(model):
        try:
            before, after = (model(input_ids=each, use_cache=False).logits[:, :-1].float() for each in (ids, changed))
        except Exception as error:  # a model's code can raise any error
            plain = all(weight.dtype == torch.float32 for weight in model.parameters())
            way_out = "" if plain else "; try model.dtype = 'float32'"
            raise ConfigError(
                f"model '{name}' cannot run in {str(model.dtype).removeprefix('torch.')} on {model.device} "
                f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}){way_out}"
            ) from error
    # Routed experts batch their tokens, so rounding may leak from a later token; the root of the precision is far
    # above that and far below what a bidirectional model does.
    slack = torch.finfo(model.dtype).eps ** 0.5 * before.abs().max().item()
    if (before - after).abs().max().item() > slack:
        raise ConfigError(f"model '{name}' looks at later tokens, so it is not a causal language model")


def cache_kind(model: PreTrainedModel) -> CacheKind:
    """Return the kind of cache that a forward returns for the next token.

    Returns:
        ``kv``: keys and values of every position, layer by layer, which may be replicated, cut and evicted freely.
        ``other``: anything else (sliding windows, recurrent states, shared or missing layers, a cache that fails).

    This selects the ways to test. Only ways that pass the test are used (``rollout.in_process.ways``,
    ``train.logprobs.layout_trial``).
    """
    from transformers import DynamicCache

    from heliostat.models.transformers_internals import DynamicLayer, memory_of

    try:
        with probing(model):
            cache: Any = memory_of(model(input_ids=probe_ids(model), use_cache=True))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # some models run only without their cache
        return "other"
    if not isinstance(cache, DynamicCache) or len(cache) != model.config.get_text_config().num_hidden_layers:
        return "other"
    return "kv" if all(type(layer) is DynamicLayer for layer in cache.layers) else "other"
