"""Comparison of a layout's gradient with that of the model's own forward of each text alone.

    g(token) = sum over places of the token of  d sum log pi(completions) / d embedding(place)

It is taken where tokens enter the model, so that it passes through every layer, trained or frozen. Keys and values that
a cache keeps without their history give the right log-probabilities, but lose the prompt's part of this gradient.

Left out: checking the model's own gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.models import LoadedModel
from heliostat.models.checks.reference_forward import short_error
from heliostat.train.logprobs.layouts import Alone, Layout
from heliostat.train.logprobs.packing import Row

MAX_GAP = 0.1
"""Largest difference from the model's own gradient, relative to its norm: above rounding, below any missing part."""


@dataclass
class GradientTrial:
    """The model's own gradient of the log-probabilities of some rows, to compare layouts with.

    Attributes:
        temperature: divides the logits.
        untrainable: the reason for a missing gradient; empty if there is one.
    """

    loaded: LoadedModel
    rows: Sequence[Row]
    temperature: float
    untrainable: str = field(default="", init=False)
    _truth: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not any(parameter.requires_grad for parameter in self.loaded.model.parameters()):
            return
        try:
            truth = self.gradient(Alone())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the code of a model can raise any type
            self.untrainable = short_error(error)
            return
        if truth is None:
            return
        if not truth.isfinite().all():
            self.untrainable = "its gradient is not finite"
        elif not truth.any():
            self.untrainable = "no gradient reaches its tokens"
        self._truth = truth

    def fault(self, layout: Layout) -> str:
        """Describe the fault of a layout's gradient; empty where it has none, or where that cannot be told."""
        if self._truth is None or self.untrainable:
            return ""
        try:
            found = self.gradient(layout)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # as above
            return short_error(error)
        gap = float("inf") if found is None else float((found - self._truth).norm() / self._truth.norm())
        return "" if gap <= MAX_GAP else f"gradients off by {gap:.1g} of their size"

    def gradient(self, layout: Layout) -> Float[Tensor, "token width"] | None:
        """Sum the gradient over the places of every token; ``None`` if the model's embedding is not called."""
        targets = torch.tensor([token for row in self.rows for token in row.completion.token_ids])
        with torch.enable_grad(), _places(self.loaded.model.get_input_embeddings()) as places:
            logits = self.loaded.head.logits(layout.hidden(self.loaded, self.rows)) / self.temperature
            logp = torch.log_softmax(logits, dim=-1).gather(1, targets.to(logits.device)[:, None])
            if not places:
                return None
            parts = torch.autograd.grad(logp.sum(), [leaf for _, leaf in places], allow_unused=True)
        ids = sorted({token for row in self.rows for token in (*row.prompt.context_ids, *row.completion.token_ids)})
        order = torch.tensor(ids)
        total = torch.zeros(len(ids) + 1, places[0][1].shape[-1])
        for (tokens, _), part in zip(places, parts, strict=True):
            if part is not None:
                index = torch.searchsorted(order, tokens.flatten().cpu())
                index[~torch.isin(tokens.flatten().cpu(), order)] = len(ids)  # padding
                total.index_add_(0, index, part.float().flatten(0, -2).cpu())
        return total


@contextmanager
def _places(embedding: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the ids passed to an embedding inside the block, and its outputs, as leaves of the graph."""
    places: list[tuple[Tensor, Tensor]] = []

    def watch(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        places.append((args[0], leaf))
        return leaf.clone()  # some models write into it

    hook = embedding.register_forward_hook(watch)
    try:
        yield places
    finally:
        hook.remove()
