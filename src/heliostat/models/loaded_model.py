"""A loaded model: its weights, its tokenizer, and the properties of the pair that other packages need.

The ids that end a turn, the padding id, and the context length are spread over three configuration files of a Hugging
Face checkpoint and its chat template. They are read here once, when a model is loaded.

Left out: finding and reading checkpoints (``loading.load``), and encoding text (``prompts.encoding``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heliostat.cards import Card
from heliostat.config import ConfigError
from heliostat.models.architecture_probes import CacheKind, cache_kind, check_causal, num_embedded_ids
from heliostat.models.head import Head, completion_head
from heliostat.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Names in a recipe that win over folders and hub ids.
TINY, SMOLLM2 = "tiny", "smollm2-135m"
BUILT_IN_NAMES = (TINY, SMOLLM2)

# Recurrent models declare no context window; this many tokens stands for "no limit".
UNLIMITED_CONTEXT = 2**20


@dataclass(frozen=True, repr=False)
class LoadedModel(Card):
    """A causal language model ready for sampling and training.

    Attributes:
        model: weights and architecture; nothing here assumes train or eval mode.
        tokenizer: the model's own tokenizer, with its chat template if it has one.
        name: ``tiny``, ``smollm2-135m``, or the folder or hub id it came from.
        context_length: longest sequence in tokens, prompt and completion together.
        eos_id: the id that ends a plain-text completion.
        turn_end_id: the id that ends an assistant turn of the chat template (``eos_id`` where that has no own marker).
        eos_ids: every id that ends a completion: both of the above and those the generation config lists.
        pad_id: the id that fills padding; never attended to, never scored.
        head: the model cut before its output projection, found and checked at load time.
        cache_kind: ``kv`` where the cache is of a kind that may be replicated and cut like a list, else ``other``.
        memo: cached results of probes of the model.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    context_length: int
    eos_id: int
    turn_end_id: int
    eos_ids: frozenset[int]
    pad_id: int
    head: Head = field(repr=False)
    cache_kind: CacheKind
    memo: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_parameters(self) -> int:
        """Number of trainable and frozen parameters, with tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def assemble(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LoadedModel:
    """Build a ``LoadedModel`` from configuration files, the chat template, and probes of the model.

    Raises:
        ConfigError: the tokenizer has ids the model has no embedding for, nothing says which id ends a completion, or
            the model does not run here or is not causal.
    """
    config = model.config.get_text_config()
    num_embeddings = num_embedded_ids(model)
    if len(tokenizer) > num_embeddings:
        raise ConfigError(
            f"model '{name}': the tokenizer has {len(tokenizer)} tokens but the model only {num_embeddings} "
            f"embeddings; {_without_embedding(tokenizer, num_embeddings)}"
        )
    declared = _declared_ends(model)
    eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(declared), None)
    if eos_id is None:
        raise ConfigError(f"model '{name}' names no end-of-sequence token; set eos_token in its tokenizer_config.json")
    turn_end_id, eos_ids = turn_ends(model, tokenizer, eos_id)
    check_causal(model, name)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        context_length=context_length_of(config, tokenizer, name),
        eos_id=eos_id,
        turn_end_id=turn_end_id,
        eos_ids=eos_ids,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_id,
        head=completion_head(model),
        cache_kind=cache_kind(model),
    )


def _without_embedding(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> str:
    """Say why a tokenizer has more ids than the model: tokens that were added to it, or another model's files."""
    beyond = {token for token, index in tokenizer.get_vocab().items() if index >= num_embeddings}
    added = [token for token in tokenizer.get_added_vocab() if token in beyond]
    if beyond - set(added):
        return "the folder mixes files of two models"
    named = ", ".join(map(repr, added[:3])) + (f" and {len(added) - 3} more" if len(added) > 3 else "")
    return (
        f"the tokenizer adds {named}, which the model has no embedding for: give it one with "
        "model.resize_token_embeddings(len(tokenizer)) and save both. If the tokenizer adds it by itself, name one "
        "that the model has as pad_token, unk_token and eos_token in tokenizer_config.json"
    )


def _declared_ends(model: PreTrainedModel) -> list[int]:
    """Return the ids that the checkpoint's configuration files name as ends of a completion."""
    config = model.config.get_text_config()
    return _as_ids(model.generation_config.eos_token_id) or _as_ids(getattr(config, "eos_token_id", None))


def turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_id: int) -> tuple[int, frozenset[int]]:
    """Return the id that ends a chat turn, and all ids that end a completion."""
    found = chat_turn_end(tokenizer)
    turn_end_id = eos_id if found is None else found
    return turn_end_id, frozenset({eos_id, turn_end_id, *_declared_ends(model)})


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    """Render messages with a chat template, with contents as text or, if the template requires it, in parts.

    Raises:
        Exception: any error of the template.
    """
    text = str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options))
    last = str(messages[-1]["content"]).strip()
    if last in text:
        return text
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    try:
        in_parts = str(tokenizer.apply_chat_template(parts, tokenize=False, **options))
    except Exception:  # the template does not read parts: keep its rendering of text
        return text
    return in_parts if last in in_parts and "'type': 'text'" not in in_parts else text


def chat_turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the special token that the chat template writes after an assistant message, by rendering a probe.

    Returns:
        Its id, or ``None`` without a template, or where the template closes a turn with ordinary text.
    """
    if not tokenizer.chat_template:
        return None
    words = "heliostat-probe"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    try:
        rendered = render_messages(tokenizer, messages)
    except Exception:  # a template for other conversations, or a broken one: the error is raised when it is used
        return None
    if words not in rendered:
        return None
    tail = tokenizer.encode(rendered.rpartition(words)[2].lstrip(), add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return tail[0] if tail and tail[0] in special else None


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def context_length_of(config: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Return the number of tokens that fit a model's context, from its text configuration and its tokenizer."""
    limit: int = min(tokenizer.model_max_length, UNLIMITED_CONTEXT)
    for attribute in ("max_position_embeddings", "max_sequence_length", "max_seq_len"):
        if declared := getattr(config, attribute, None):
            limit = int(declared)
            break
    turn = _turning_length(config)
    if turn is None or turn >= limit:
        return limit
    warnings.warn(
        f"model '{name}' sees every position anew in texts of more than {turn} tokens (LongRoPE), so cached and padded "
        f"texts would not be its own beyond them; its contexts are held to {turn} of {limit} tokens",
        stacklevel=3,
    )
    return turn


def _turning_length(config: Any) -> int | None:
    """Return the length beyond which the rotations of all positions change; ``None`` if there is none."""
    rotations = getattr(config, "rope_parameters", None) or {}
    kinds = [rotations, *(each for each in rotations.values() if isinstance(each, dict))]
    own = getattr(config, "original_max_position_embeddings", None)
    turns = [each.get("original_max_position_embeddings", own) for each in kinds if each.get("rope_type") == "longrope"]
    return min((int(turn) for turn in turns if turn), default=None)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars inside the block."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
