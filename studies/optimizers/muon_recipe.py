"""Muon as a recipe's optimizer (``optimizer.name = "muon_recipe:Muon"``), for the comparison in post-training.

The update is torch's own; embeddings, the output head, biases and norms go to AdamW at the same rate.

Left out: weight decay, weights stored in a lower-precision dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rivals import Split, muon
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for matrices inside the model, scaled to the length of Adam's steps."""

    name: ClassVar[str] = "muon"
    weight_decay: float = 0.0

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        matrices = [weight for name, weight in model.named_parameters() if is_inner_matrix(name, weight)]
        return ResumedSplit(model, lr, matrices, muon, betas=(0.9, 0.999))


class ResumedSplit(Split):
    """Two rules over one state, so that the state of both is saved and restored."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]


def is_inner_matrix(name: str, weight: torch.Tensor) -> bool:
    """Return whether a weight is a trained matrix that is neither the embedding nor the output head."""
    return weight.requires_grad and weight.ndim == 2 and "embed" not in name and "lm_head" not in name
