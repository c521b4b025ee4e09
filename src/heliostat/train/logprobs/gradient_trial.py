"""A trial of gradients: a layout of rows must have the gradient of the model's own forward of each text alone.

    g(token) = sum over places of the token of  d sum log pi(completions) / d embedding(place)

The gradient is taken at the embeddings, so that it passes through every layer, whichever layers are trained. A cache
that detaches keys and values gives the right log-probabilities, but loses the prompt's part of this gradient.

Left out: whether the model's own gradient is right.
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
"""Largest distance from the model's own gradient, relative to its norm: above rounding errors, below a missing part."""


@dataclass
class GradientTrial:
    """The model's own gradient for some rows, as the reference of layouts.

    Attributes:
        temperature: divides the logits.
        untrainable: the reason why there is no gradient; empty where there is one.
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
            truth = self._gradient(Alone())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model's own code may raise anything for inputs that it does not support
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
        """Describe the fault of a layout's gradient; empty if it has none, or if there is nothing to compare with."""
        if self._truth is None or self.untrainable:
            return ""
        try:
            found = self._gradient(layout)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # as above
            return short_error(error)
        gap = float("inf") if found is None else float((found - self._truth).norm() / self._truth.norm())
        return "" if gap <= MAX_GAP else f"gradients off by {gap:.1g} of their size"

    def _gradient(self, layout: Layout) -> Float[Tensor, "token width"] | None:
        """Sum the gradient over the places of each token; ``None`` if the model does not call its embedding."""
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
    """Collect the inputs and outputs of an embedding in the block; outputs become leaves of the graph."""
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
