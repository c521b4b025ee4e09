"""Token log-probabilities of completions under the model being trained.

    shared:  prompt once per group --keys/values, with gradient--> expanded to its rows --> completions attend to it
    plain:   prompt and completion together, one row each (models whose cache cannot carry gradients)

Both give the same numbers and the same gradients; the shared form computes each prompt once per group instead of once
per completion. Only completion positions reach the LM head, in chunks whose logits are recomputed in the backward pass,
so no ``[batch, tokens, vocab]`` tensor is ever alive.

Left out: what the numbers are used for (``objectives``), and padding decisions (``train.packing``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from heliostat.models import Head, LoadedModel
from heliostat.rollout import key_values
from heliostat.train.packing import Row

MAX_LOGITS = 2**24
"""Logits alive at once in the head (64 MiB in float32)."""


def completion_log_probs(
    head: Head,
    hidden: Float[Tensor, "token feature"],
    targets: Int[Tensor, " token"],
    temperature: float,
    vocab_size: int,
) -> Float[Tensor, " token"]:
    r"""``log softmax(head(h_t) / T)[y_t]`` for every completion token, at most ``MAX_LOGITS`` logits at a time.

    Limits:
        One chunk and many chunks give the same values and gradients (to float accuracy).
    """

    def of_chunk(chunk: Tensor, target: Tensor) -> Tensor:
        logits = head.logits(chunk).float() / temperature
        return torch.log_softmax(logits, dim=-1).gather(1, target.unsqueeze(1)).squeeze(1)

    chunk_size = max(1, MAX_LOGITS // vocab_size)
    if hidden.shape[0] <= chunk_size:
        return of_chunk(hidden, targets)
    pieces = zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([of_chunk(chunk, target) for chunk, target in pieces])
    recomputed = [checkpoint(of_chunk, chunk, target, use_reentrant=False) for chunk, target in pieces]
    return torch.cat(recomputed)


class Policy:
    """Log-probabilities of micro-batches, by the cheapest exact route the model allows."""

    def __init__(self, loaded: LoadedModel, temperature: float, shared_prompt: bool) -> None:
        self.loaded = loaded
        self.temperature = temperature
        self.shared_prompt = shared_prompt and loaded.cache_kind == "kv"
        self.device = next(loaded.model.parameters()).device

    def log_probs(self, rows: Sequence[Row]) -> Float[Tensor, " token"]:
        """Log-probability of every completion token of ``rows``, concatenated in row order."""
        hidden = self._shared(rows) if self.shared_prompt else self._plain(rows)
        targets = torch.tensor([token for row in rows for token in row.completion.token_ids], device=self.device)
        vocab_size = self.loaded.model.config.get_text_config().vocab_size
        return completion_log_probs(self.loaded.head, hidden, targets, self.temperature, vocab_size)

    def _plain(self, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        """Right-padded rows: under causal attention and recurrence nothing scored can see the padding."""
        inputs = [(row.prompt.context_ids + row.completion.token_ids)[:-1] for row in rows]
        hidden = self.loaded.head.hidden(input_ids=self._padded(inputs), use_cache=False)
        # Position i predicts token i + 1, so a completion's tokens are predicted from the context's last position on.
        picked = [
            hidden[index, row.context_length - 1 : row.context_length - 1 + row.num_tokens]
            for index, row in enumerate(rows)
        ]
        return torch.cat(picked)

    def _shared(self, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        contexts = {row.group: row.prompt.context_ids for row in rows}
        order = {group: index for index, group in enumerate(contexts)}
        prompt_of_row = torch.tensor([order[row.group] for row in rows], device=self.device)
        lengths = torch.tensor([len(ids) for ids in contexts.values()], device=self.device)
        width = int(lengths.max())

        ids = self._padded([(self.loaded.pad_id,) * (width - len(c)) + c for c in contexts.values()])
        start = (width - lengths)[:, None]
        columns = torch.arange(width, device=self.device)[None]
        cache = DynamicCache(config=self.loaded.model.config)
        prompt_hidden = self.loaded.head.hidden(
            input_ids=ids,
            attention_mask=(columns >= start).long(),
            position_ids=(columns - start).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = prompt_hidden[:, -1][prompt_of_row].unsqueeze(1)
        num_tokens = torch.tensor([row.num_tokens for row in rows], device=self.device)
        if int(num_tokens.max()) > 1:
            rest = self._continue(rows, cache, start[prompt_of_row], prompt_of_row, width)
            hidden = torch.cat([hidden, rest], dim=1)
        real = torch.arange(hidden.shape[1], device=self.device)[None] < num_tokens[:, None]
        return hidden[real]

    def _continue(
        self, rows: Sequence[Row], cache: DynamicCache, start: Tensor, prompt_of_row: Tensor, width: int
    ) -> Float[Tensor, "row token feature"]:
        """Hidden states of the completions' inputs (all but each last token), attending to their prompt's cache."""
        ids = self._padded([row.completion.token_ids[:-1] for row in rows])
        for layer in cache.layers:
            keys, values = key_values(layer)
            layer.keys, layer.values = keys[prompt_of_row], values[prompt_of_row]  # type: ignore[union-attr]
        steps = torch.arange(ids.shape[1], device=self.device)
        columns = torch.arange(width + ids.shape[1], device=self.device)
        after_padding = columns[None, None] >= start[:, :, None]
        causal = columns[None, None] <= width + steps[None, :, None]
        return self.loaded.head.hidden(
            input_ids=ids,
            attention_mask=(after_padding & causal)[:, None],
            position_ids=width - start + steps[None],
            past_key_values=cache,
            use_cache=True,
        )

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> Int[Tensor, "row token"]:
        width = max(len(row) for row in rows)
        padded = [row + (self.loaded.pad_id,) * (width - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self.device)
