"""Natural gradient with a Fisher matrix of rank one (or m): Sherman-Morrison, Woodbury, no d x d object.

    F = D + (1/m) sum_k u_k u_k',   d = F^-1 g = D^-1 (g - U w),   (m I + U' D^-1 U) w = U' D^-1 g

with ``u_k`` the score (gradient of the log-probability) of one sample each and ``D`` the damping. The method of one
sampled score is that of Huo, Dash, Stoican, Kaski and Sun; several scores, blocks, averages, momentum and the KL bound
are ours.

Left out: choosing the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from heliostat.optim.finite import ExtraPass, FiniteStep
from heliostat.optim.reductions import all_finite, dot, inner, wide
from heliostat.optim.scores import Score, ScoreBuffer

Block = Literal["global", "param", "layer"]
Source = Literal["scores", "gradient"]


@dataclass(frozen=True, slots=True)
class Rank1Report:
    """What the last step saw.

    Attributes:
        score_square_norm: mean of ``|u_k|^2`` over the scores; heavy-tailed for policies that become certain.
        kl: half the damped quadratic form of the step without momentum, in nats; NaN without ``max_kl``.
        scale: what ``max_kl`` multiplied the step by.
    """

    score_square_norm: float
    kl: float
    scale: float


@dataclass(slots=True)
class _Products:
    """One tensor's inner products: ``U'U``, ``U'g``, and which scores reach the tensor."""

    gram: Tensor
    cross: Tensor
    present: list[int]


@dataclass(slots=True)
class _Solved:
    """One block's coefficients: ``d = D^-1 (g - sum_k weights_k u_k)``, and ``g' d``."""

    parameters: list[Tensor]
    weights: list[float]
    decrement: float


class Rank1NaturalGradient(FiniteStep):
    r"""``w <- w - lr * (damping I + (1/m) sum_k u_k u_k')^-1 g`` with the scores ``u_k`` of m samples.

    ``F^-1 g = (1/damping) (g - u (u'g) / (damping + u'u))`` for one score: two inner products, no stored state.
    The effective learning rate is ``lr / damping``: compare it, not ``lr``, with another method's.

    Args:
        params: parameters, named parameters (needed for ``block="layer"``), or groups.
        lr: learning rate; the step is ``lr * d``.
        damping: what F is away from the scores; may differ by group.
        num_scores: m, the scores each step takes (on this process).
        block: ``global``: one F over all parameters; ``param``: one per tensor; ``layer``: one per module.
        source: ``scores``: the samples' scores, given before each step; ``gradient``: u is g itself, nothing is given.
        ema: weight of the old mean in a running mean of each of the m scores; 0 keeps no memory. Scores have mean
            zero, so the mean of independent ones is shorter: by ``(1 - ema) / (1 + ema)`` in ``|u|^2``.
        momentum: of the natural gradient: ``b <- momentum * b + d``.
        weight_decay: decoupled: ``w <- w - lr * weight_decay * w``.
        max_kl: shortens the step (before momentum) so that ``lr^2 g'd / 2``, its divergence in F, is at most this.
        process_group: scores of all its ranks are gathered: with R ranks F has R * m of them. Each rank takes its
            own score without gradient synchronisation (``no_sync``).

    Raises:
        ValueError: a setting out of range, or ``block="layer"`` without names.

    Limits:
        damping -> infinity: SGD with learning rate ``lr / damping``.
        ``g`` orthogonal to every score: SGD with ``lr / damping``, exactly.
        one score and ``g = a u``: ``d = a u / (damping + |u|^2)``, the normalised gradient.
        ``source="gradient"``: ``d = g / (damping + |g|^2)``.
        ``ema = 0``, or the same scores at every step: the method without memory.
        m scores: the dense solve with ``damping I + (1/m) U U'``.
        one tensor: the three blocks agree.

    References:
        Huo, Dash, Stoican, Kaski, Sun, arXiv 2601.18626 (2026). A reconstruction: the paper's body was not available;
        known of it are the one-sample Fisher, its damping and the formula above.
    """

    extra_pass: ClassVar[ExtraPass] = "scores"

    def __init__(
        self,
        params: Any,
        lr: float,
        damping: float = 1.0,
        num_scores: int = 1,
        block: Block = "global",
        source: Source = "scores",
        ema: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        max_kl: float | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        if not damping > 0:
            raise ValueError(f"damping must be positive, got {damping}")
        if num_scores < 1:
            raise ValueError(f"num_scores must be at least 1, got {num_scores}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if max_kl is not None and not max_kl > 0:
            raise ValueError(f"max_kl must be positive or None, got {max_kl}")
        if block not in ("global", "param", "layer"):
            raise ValueError(f"block must be 'global', 'param' or 'layer', got '{block}'")
        if source not in ("scores", "gradient"):
            raise ValueError(f"source must be 'scores' or 'gradient', got '{source}'")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        if source == "gradient" and num_scores != 1:
            raise ValueError(f"source='gradient' has one u, the gradient: num_scores must be 1, got {num_scores}")
        self.num_scores, self.block, self.max_kl, self.process_group = num_scores, block, max_kl, process_group
        self.source, self.ema = source, ema
        self.report: Rank1Report | None = None
        self._scores = ScoreBuffer()
        super().__init__(params, {"lr": lr, "damping": damping, "momentum": momentum, "weight_decay": weight_decay})
        if block == "layer" and "param_names" not in self.param_groups[0]:
            raise ValueError("block='layer' needs names: pass model.named_parameters()")

    def score(self) -> AbstractContextManager[None]:
        """The backward pass inside becomes a score; gradients are as before when the context ends.

        The quantity to differentiate is the log-probability of one sample drawn from the model (the sign of a score
        does not matter, its scale does).

        Raises:
            RuntimeError: nothing was differentiated inside.
        """
        return self._scores.backward_inside(self.parameters())

    # -- the step ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        score_closure: Callable[[], Tensor] | None = None,
        scores: Mapping[Tensor, Tensor] | None = None,
    ) -> Any:
        """One step on the gradients in place and the scores given since the last one.

        Args:
            closure: optional; puts the gradients in place and returns the loss.
            score_closure: optional; returns the log-probabilities of the m samples, shape [m], with their graph.
            scores: optional; the m scores themselves by parameter, each ``[m, *parameter.shape]``, as
                ``torch.func`` makes them.

        Raises:
            RuntimeError: not as many scores as ``num_scores``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if score_closure is not None:
            with torch.enable_grad():
                self._scores.differentiate(score_closure(), self.parameters())
        if scores is not None:
            self._scores.add(scores)
        groups = {p: group for group in self.param_groups for p in self.with_gradient(group)}
        used = self._take()
        if not groups:
            return loss
        products = _inner_products(used, list(groups))
        squares = sum(float(part.gram.diagonal().sum()) for part in products.values()) / len(used)
        if not self._is_finite(products, squares):
            self.skip("the gradient or a score")
            return loss
        if self.ema:
            used = [self._remember(index, score) for index, score in enumerate(used)]
            products = _inner_products(used, list(groups))
        solved = [self._solve(parameters, len(used), products, groups) for parameters in self._blocks(groups)]
        kl, scale = self._trust_region(solved)
        for block in solved:
            for parameter in block.parameters:
                given = [(w, u[parameter]) for w, u in zip(block.weights, used, strict=True) if parameter in u]
                self._move(parameter, groups[parameter], given, scale)
        self.num_steps += 1
        self.report = Rank1Report(squares, kl, scale)
        return loss

    def _take(self) -> list[Score]:
        if self.source == "gradient":
            return [{p: p.grad for p in self.parameters() if p.grad is not None}]
        return self._scores.take(self.num_scores, self.parameters(), self.process_group)

    def _is_finite(self, products: Mapping[Tensor, _Products], squares: float) -> bool:
        """A number in g that is not finite makes ``u'g`` so too (0 times it is NaN); g is read only where no u is."""
        alone = [_gradient(parameter) for parameter, part in products.items() if not part.present]
        along = sum(float(part.cross.sum()) for part in products.values())
        return isfinite(squares) and isfinite(along) and all_finite(alone)

    def _remember(self, index: int, score: Score) -> Score:
        """The running mean of the score in place ``index``."""
        means: Score = {}
        for parameter in self.parameters():
            state, key = self.state[parameter], f"score_mean_{index}"
            new = wide(score[parameter]) if parameter in score else torch.zeros_like(wide(parameter))
            state[key] = state[key].mul_(self.ema).add_(new, alpha=1 - self.ema) if key in state else new.clone()
            means[parameter] = state[key]
        return means

    def _blocks(self, groups: dict[Tensor, dict[str, Any]]) -> list[list[Tensor]]:
        if self.block == "global":
            return [list(groups)]
        if self.block == "param":
            return [[parameter] for parameter in groups]
        names = {
            parameter: name
            for group in self.param_groups
            for parameter, name in zip(group["params"], group["param_names"], strict=True)
        }
        layers: dict[str, list[Tensor]] = {}
        for parameter in groups:
            layers.setdefault(names[parameter].rpartition(".")[0], []).append(parameter)
        return list(layers.values())

    def _solve(
        self,
        block: list[Tensor],
        m: int,
        products: Mapping[Tensor, _Products],
        groups: Mapping[Tensor, dict[str, Any]],
    ) -> _Solved:
        """The coefficients of the scores in ``d``, from an m x m system in float64."""
        gram, cross, own = torch.eye(m, dtype=torch.float64) * m, torch.zeros(m, dtype=torch.float64), 0.0
        for parameter in block:
            part, damping = products[parameter], groups[parameter]["damping"]
            if len(part.present) == m:
                gram.add_(part.gram, alpha=1 / damping)
                cross.add_(part.cross, alpha=1 / damping)
            elif part.present:
                gram[np.ix_(part.present, part.present)] += part.gram / damping
                cross[part.present] += part.cross / damping
            if self.max_kl is not None:
                own += dot([_gradient(parameter)], [_gradient(parameter)]) / damping
        weights = cross / gram[0] if m == 1 else torch.linalg.solve(gram, cross)
        return _Solved(block, weights.tolist(), own - float(cross @ weights))

    def _trust_region(self, solved: list[_Solved]) -> tuple[float, float]:
        """The step's divergence at the largest group's learning rate, and what shortens it to ``max_kl``."""
        if self.max_kl is None:
            return float("nan"), 1.0
        lr = max(group["lr"] for group in self.param_groups)
        kl = 0.5 * lr**2 * sum(block.decrement for block in solved)
        scale = min(1.0, (self.max_kl / kl) ** 0.5) if kl > 0 else 1.0
        return kl * scale**2, scale

    def _move(self, parameter: Tensor, group: dict[str, Any], given: list[tuple[float, Tensor]], scale: float) -> None:
        """``w <- (1 - lr wd) w - lr d``, without a temporary where there is no momentum and the type is wide."""
        lr, momentum = group["lr"], group["momentum"]
        factor = scale / group["damping"]
        target = wide(parameter)
        if group["weight_decay"]:
            target.mul_(1 - lr * group["weight_decay"])
        rate = -lr
        if momentum:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(target)
            receiver, rate = state["momentum_buffer"].mul_(momentum), 1.0
        else:
            receiver = target
        receiver.add_(wide(_gradient(parameter)), alpha=rate * factor)
        for weight, score in given:
            receiver.add_(wide(score), alpha=-rate * factor * weight)
        if momentum:
            target.add_(receiver, alpha=-lr)
        if target is not parameter:
            parameter.copy_(target)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _inner_products(scores: list[Score], parameters: list[Tensor]) -> dict[Tensor, _Products]:
    """``U'U`` and ``U'g`` of every tensor, in float64 on the CPU."""
    if len(scores) == 1:
        return _of_one_score(scores[0], parameters)
    return {parameter: _of_many(scores, parameter) for parameter in parameters}


def _of_one_score(score: Score, parameters: list[Tensor]) -> dict[Tensor, _Products]:
    """Two numbers a tensor, all read at once."""
    reached = [parameter for parameter in parameters if parameter in score]
    pairs = [inner(score[p], other) for p in reached for other in (score[p], _gradient(p))]
    numbers = torch.stack(pairs).double().cpu().reshape(-1, 2, 1) if pairs else torch.zeros(0, 2, 1)
    found = {p: _Products(row[:1], row[1], [0]) for p, row in zip(reached, numbers, strict=True)}
    nothing = _Products(torch.zeros(0, 0), torch.zeros(0), [])
    return {parameter: found.get(parameter, nothing) for parameter in parameters}


def _of_many(scores: list[Score], parameter: Tensor) -> _Products:
    """Several plain scores in one matrix product; sharded ones pair by pair."""
    present = [index for index, score in enumerate(scores) if parameter in score]
    gradient, given = _gradient(parameter), [scores[index][parameter] for index in present]
    if not given:
        return _Products(torch.zeros(0, 0), torch.zeros(0), [])
    if isinstance(gradient, DTensor):
        gram = torch.stack([inner(a, b) for a in given for b in given]).reshape(len(given), -1)
        cross = torch.stack([inner(a, gradient) for a in given])
    else:
        rows = wide(torch.stack(given)).flatten(1)
        gram, cross = rows @ rows.T, rows @ wide(gradient).reshape(-1)
    return _Products(gram.double().cpu(), cross.double().cpu(), present)
