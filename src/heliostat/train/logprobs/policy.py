"""Token log-probabilities of completions under the model being trained.

Every layout of the rows gives the same values and the same gradients (``layouts``); the cheapest for each batch
is used. Only completion positions reach the LM head, in chunks whose logits are recomputed in the backward
pass, so no ``[batch, tokens, vocab]`` tensor is ever alive.

Left out: the use of the log-probabilities (``objectives``), and splitting batches (``packing``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from heliostat.models import Head, LoadedModel, forward_flops
from heliostat.models.flops import attention_layers
from heliostat.train.distributed.fsdp import as_fsdp_forward, is_sharded
from heliostat.train.logprobs.gradient_checkpointing import recomputing
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.layouts import Cached, Layout, Work, num_filled
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.packing import GroupShape, Row, by_group

MAX_LOGITS = 2**25
"""Logits alive at once in the head (128 MiB in float32); more are computed again in the backward pass."""

CALL_FLOPS = 5e6
"""Operations that a processor does in the time that one call of attention costs beyond its own."""

NARROW_PAIRS = 1.5
"""Cost of a pair in bfloat16 over one in float32 on a processor, whose backward pass of short attention is slower."""


def completion_log_probs(
    head: Head,
    hidden: Float[Tensor, "token feature"],
    targets: Int[Tensor, " token"],
    temperature: float,
    vocab_size: int,
) -> Float[Tensor, " token"]:
    r"""Compute ``log softmax(head(h_t) / T)[y_t]`` for every completion token, at most ``MAX_LOGITS`` logits at a time.

    Limits:
        One chunk and many chunks give the same values and gradients (to float accuracy).
    """

    def of_chunk(chunk: Tensor, target: Tensor) -> Tensor:
        filled = num_filled(len(chunk), 1, chunk)
        logits = head.logits(torch.nn.functional.pad(chunk, (0, 0, 0, filled - len(chunk))))[: len(chunk)]
        logits = logits if temperature == 1 else logits / temperature  # saves two passes over the largest tensor
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
    """Log-probabilities of micro-batches, by the cheapest layout that is exact for the model (``layout_trial``).

    Args:
        shared_prompt: compute each prompt once per group if a layout that shares prompts is exact.
        gradient_checkpointing: keep fewer activations, and recompute layers in the backward pass.
    """

    def __init__(
        self, loaded: LoadedModel, temperature: float, shared_prompt: bool, gradient_checkpointing: bool = False
    ) -> None:
        self.loaded = loaded
        self.temperature = temperature
        self.gradient_checkpointing = gradient_checkpointing
        exact = exact_layouts(loaded)
        sharing = exact.sharing if shared_prompt else ()
        if gradient_checkpointing or is_sharded(loaded.model):
            # Recomputed layers must not write to a cache a second time, nor attend in the model's own way where they
            # did not before. A cache must not refer to layers that were gathered for a pass and resharded since.
            sharing = tuple(layout for layout in sharing if not isinstance(layout, Cached | Packed))
        self.shared_prompt = bool(sharing)
        self.layouts: tuple[Layout, ...] = sharing or (exact.single,)
        self.device = next(loaded.model.parameters()).device
        alone = forward_flops(loaded, 1, 0, 0)
        self._pair_cost = (forward_flops(loaded, 1, 1, 0) - alone) / alone
        is_narrow = self.device.type == "cpu" and next(loaded.model.parameters()).dtype != torch.float32
        self._own_attention = NARROW_PAIRS if is_narrow else 1.0
        self._call_cost = CALL_FLOPS * len(attention_layers(loaded.model)) / alone

    def with_model(self, loaded: LoadedModel) -> Policy:
        """Return this policy with a copy of its model, whose layouts need no second trial."""
        copied = copy.copy(self)
        copied.loaded = loaded
        return copied

    def log_probs(self, rows: Sequence[Row]) -> Float[Tensor, " token"]:
        """Compute the log-probability of every completion token of ``rows``, concatenated in row order."""
        targets = torch.tensor([token for row in rows for token in row.completion.sampled_ids], device=self.device)

        def work() -> Tensor:
            return completion_log_probs(
                self.loaded.head, self._hidden(rows), targets, self.temperature, self._vocab_size
            )

        return as_fsdp_forward(self.loaded.model, work)

    def hidden(self, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        """Compute the state that the head reads to predict each completion token, concatenated in row order.

        **Limits** The log-softmax of the head's logits at these states, over the temperature, is ``log_probs``.
        """
        return as_fsdp_forward(self.loaded.model, lambda: self._hidden(rows))

    @torch.no_grad()
    def entropies(self, rows: Sequence[Row]) -> Float[Tensor, " token"]:
        """Compute the entropy of the distribution before every completion token, in nats, without gradient."""
        return as_fsdp_forward(self.loaded.model, lambda: self._entropies(rows))

    def _entropies(self, rows: Sequence[Row]) -> Float[Tensor, " token"]:
        pieces = []
        for chunk in torch.split(self._hidden(rows), max(1, MAX_LOGITS // self._vocab_size)):
            logp = torch.log_softmax(self.loaded.head.logits(chunk).float() / self.temperature, dim=-1)
            pieces.append(torch.special.entr(logp.exp()).sum(dim=-1))
        return torch.cat(pieces)

    def _hidden(self, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        layout, _ = self.cheapest([GroupShape.of(group) for group in by_group(rows)])
        with recomputing(self.loaded.model) if self.gradient_checkpointing else nullcontext():
            return layout.hidden(self.loaded, rows)

    @property
    def _vocab_size(self) -> int:
        return int(self.loaded.model.config.get_text_config().vocab_size)

    def padded_tokens(self, groups: Sequence[GroupShape]) -> int:
        """Count the tokens that a forward over these groups computes, padding included."""
        return self.cheapest(groups)[1].num_tokens

    def cheapest(self, groups: Sequence[GroupShape]) -> tuple[Layout, Work]:
        """Return the layout that costs least for these groups in one forward, and its work."""
        works = [(layout, layout.work(groups)) for layout in self.layouts]
        return min(works, key=lambda pair: self._cost(*pair))

    def _cost(self, layout: Layout, work: Work) -> float:
        """Return the cost of a forward pass in tokens that attend to nothing; ``Packed`` attends in float32."""
        pairs = work.num_pairs * (1.0 if isinstance(layout, Packed) else self._own_attention)
        return work.num_tokens + self._pair_cost * pairs + self._call_cost * work.num_calls
