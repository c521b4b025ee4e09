"""Rivals that no library at hand has in the form needed here, and one rule for matrices beside AdamW for the rest.

KL-Shampoo's two formulas are the paper's (Lin et al., 2025, arXiv 2509.03378); everything else about ours (start,
damping, exact eigenbases every ten steps) is our own, so it is a KL-Shampoo-*like* baseline.

Left out: weight decay, tensors of more than two axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def muon(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """torch's own, with steps as long as Adam's; its iteration runs in bfloat16, slow where a processor lacks that."""
    return torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


class KLShampooLike(torch.optim.Optimizer):
    r"""``W <- W - lr * A^(-1/2) M B^(-1/2)`` with ``A <- E[G B^-1 G'] / q`` and ``B <- E[G' A^-1 G] / p``.

    ``A (x) B`` is the Kronecker product closest to the gradient's second moment in Kullback-Leibler divergence; no
    grafting. Its eigenvectors are renewed every ``precondition_every`` steps, its eigenvalues every step in the basis
    at hand. The first step alternates the two formulas on its own gradient from ``B = I``.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        precondition_every: int = 10,
        damping: float = 1e-4,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "every": precondition_every, "damping": damping})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self._direction(p.grad, self.state[p], group), alpha=-group["lr"])

    def _direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        (p, q), (beta1, beta2) = gradient.shape, group["betas"]
        if not state:
            state |= {"steps": 0, "mean": torch.zeros_like(gradient)}
            state["B"] = torch.eye(q) * (gradient.square().mean() + 1e-30)
            for _ in range(3):
                state["A"] = _damped(gradient @ torch.linalg.solve(state["B"], gradient.T) / q, group["damping"])
                state["B"] = _damped(gradient.T @ torch.linalg.solve(state["A"], gradient) / p, group["damping"])
        state["mean"].lerp_(gradient, 1 - beta1)
        if state["steps"]:
            half_a, half_b = state["U"].T @ gradient, gradient @ state["V"]  # G'A^-1 G and G B^-1 G' without inverses
            turned = half_a @ state["V"]
            state["A"].lerp_((half_b / state["b"]) @ half_b.T / q, 1 - beta2)
            state["B"].lerp_((half_a.T / state["a"]) @ half_a / p, 1 - beta2)
            squares = turned.square()
            a, b = (squares / state["b"]).mean(1), (squares / state["a"][:, None]).mean(0)
            for key, new in (("a", a), ("b", b)):
                state[key].lerp_(new, 1 - beta2).clamp_(min=group["damping"] * float(state[key].mean()))
        if state["steps"] % group["every"] == 0:
            for matrix, values, basis in (("A", "a", "U"), ("B", "b", "V")):
                found, state[basis] = torch.linalg.eigh(state[matrix])
                state[values] = found.clamp(min=group["damping"] * float(found.mean()))
        state["steps"] += 1
        scale = (state["a"][:, None] * state["b"]).rsqrt_() / (1 - beta1 ** state["steps"])
        return state["U"] @ ((state["U"].T @ state["mean"] @ state["V"]) * scale) @ state["V"].T


def _damped(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * matrix.trace() / len(matrix) * torch.eye(len(matrix))


class Split(torch.optim.Optimizer):
    """One rule for some matrices, fused AdamW for everything else, at one learning rate in Adam's units."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        matrices: Sequence[Tensor],
        make: Callable[[list[Tensor], float], torch.optim.Optimizer],
        betas: tuple[float, float],
    ) -> None:
        ids = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in ids]
        self.parts = [
            make(list(matrices), lr),
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.0, fused=True),
        ]
        super().__init__(model.parameters(), {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        for part in self.parts:
            part.step()
