"""Natural gradient with a Fisher matrix of rank one (or m): Sherman-Morrison, Woodbury, no d x d object.

    F = D + (1/m) sum_k u_k u_k',   d = F^-1 g = D^-1 (g - U w),   (m I + U' D^-1 U) w = U' D^-1 g

with ``u_k`` the score (gradient of the log-probability) of one sample each and ``D`` the damping. The method of one
sampled score is that of Huo, Dash, Stoican, Kaski and Sun; several scores, blocks, averages, momentum and the KL bound
are ours.

Left out: choosing the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.optim.base.optimizer import BaseOptimizer, ExtraPass, NotFinite, in_own_precision
from heliostat.optim.base.setting_ranges import check_settings
from heliostat.optim.distributed.replicas import Group, without_gradient_averaging
from heliostat.optim.distributed.sharded_tensors import all_finite, dot, local_shard, sum_over_shards, upcast
from heliostat.optim.scores.score_buffer import Rows, ScoreBuffer

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
class _Solved:
    """One block's coefficients: ``d = D^-1 (g - sum_k weights_k u_k)``, and ``g' d``."""

    parameters: list[Tensor]
    weights: np.ndarray
    decrement: float


class Rank1NaturalGradient(BaseOptimizer):
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
        process_group: scores of all its ranks are gathered: with R ranks F has R * m of them. ``None``: the default
            group, ``"alone"``: no others. Each rank takes scores of samples of its own, from a forward pass that begins
            inside ``score()``, where DDP averages nothing. Of weights sharded over ranks a score is that of all ranks'
            rows: let each run the same sample.

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
        process_group: Group = None,
    ) -> None:
        check_settings({"lr": lr, "damping": damping, "momentum": momentum, "weight_decay": weight_decay})
        check_settings({"ema": ema, "max_kl": max_kl})
        if num_scores < 1:
            raise ValueError(f"num_scores must be at least 1, got {num_scores}")
        if block not in ("global", "param", "layer"):
            raise ValueError(f"block must be 'global', 'param' or 'layer', got '{block}'")
        if source not in ("scores", "gradient"):
            raise ValueError(f"source must be 'scores' or 'gradient', got '{source}'")
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and scores that no step has taken."""
        super().zero_grad(set_to_none)
        self._scores.clear()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return self.source == "scores"

    # -- the step ---------------------------------------------------------------------------------------------------

    @in_own_precision
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
            RuntimeError: not as many scores as ``num_scores``, or scores that reach none of the parameters.
        """
        loss = self.run_closure(closure)
        if score_closure is not None:
            with self.callers_mode(), without_gradient_averaging():
                self._scores.differentiate(score_closure(), self.parameters())
        if scores is not None:
            self._scores.add(scores, self.parameters())
        if self._scores.is_empty and self.would_move_nothing():
            self._begin_all()
            return loss
        groups = {p: group for group in self.param_groups for p in self.with_gradient(group)}
        ranks = self.checked_ranks()
        num_scores, rows = self._take(ranks)
        if not groups:
            return loss
        products = _inner_products(num_scores, rows, list(groups))
        squares = float(products.sum(0)[:, 1:].trace()) / num_scores
        if not (isfinite(squares) and np.isfinite(products).all() and all_finite(_unscored(groups, rows))):
            self.skip("the gradient or a score")
            return loss
        self.commit(lambda: self._move_all(num_scores, rows, products, groups, squares))
        return loss

    def _move_all(
        self, num_scores: int, rows: Rows, products: np.ndarray, groups: dict[Tensor, dict[str, Any]], squares: float
    ) -> None:
        if self.ema:
            rows = self._remember(num_scores, rows)
            products = _inner_products(num_scores, rows, list(groups))
        solved = self._solve(products, groups)
        kl, scale = self._trust_region(solved)
        for block in solved:
            for parameter in block.parameters:
                self._move(parameter, groups[parameter], rows.get(parameter), block, scale)
        self.report = Rank1Report(squares, kl, scale)

    def _begin_all(self) -> None:
        """State for every parameter with a gradient, before any step."""
        for group in self.param_groups:
            for parameter in self.with_gradient(group):
                self.weight(parameter)
                if group["momentum"]:
                    self._buffer(parameter)
                for index in range(self.num_scores if self.ema else 0):
                    self._mean(parameter, index)

    def _take(self, ranks: dist.ProcessGroup | None) -> tuple[int, Rows]:
        """How many scores there are, and this process's part of them."""
        if self.source == "gradient":
            return 1, {p: local_shard(p.grad, p)[None] for p in self.parameters() if p.grad is not None}
        return self._scores.take_rows(self.num_scores, self.parameters(), ranks)

    def _remember(self, num_scores: int, rows: Rows) -> Rows:
        """The running mean of the score in every place."""
        means: Rows = {}
        for parameter in self.parameters():
            new = upcast(rows[parameter]) if parameter in rows else None
            for index in range(num_scores):
                mean = self._mean(parameter, index).mul_(self.ema)
                if new is not None:
                    mean.add_(new[index], alpha=1 - self.ema if self.state[parameter]["num_means"] else 1.0)
            self.state[parameter]["num_means"] += 1
            means[parameter] = torch.stack([self._mean(parameter, index) for index in range(num_scores)])
        return means

    def _mean(self, parameter: Tensor, index: int) -> Tensor:
        state = self.state[parameter]
        state.setdefault("num_means", 0)
        if f"score_mean_{index}" not in state:
            state[f"score_mean_{index}"] = torch.zeros_like(upcast(parameter))
        return local_shard(state[f"score_mean_{index}"], parameter)

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

    def _solve(self, products: np.ndarray, groups: dict[Tensor, dict[str, Any]]) -> list[_Solved]:
        """Every block's coefficients of the scores in ``d``, from an m x m system in float64."""
        place = {parameter: index for index, parameter in enumerate(groups)}
        damping = np.array([group["damping"] for group in groups.values()])[:, None, None]
        weighted, num_scores = products / damping, products.shape[1]
        solved = []
        for block in self._blocks(groups):
            total = weighted[[place[parameter] for parameter in block]].sum(0)
            cross, gram = total[:, 0], total[:, 1:]
            system = gram + num_scores * np.eye(num_scores)
            weights = cross / system[0] if num_scores == 1 else np.linalg.solve(system, cross)
            own = 0.0
            if self.max_kl is not None:
                own = sum(dot([_gradient(p)], [_gradient(p)]) / groups[p]["damping"] for p in block)
            solved.append(_Solved(block, weights, own - float(cross @ weights)))
        return solved

    def _trust_region(self, solved: list[_Solved]) -> tuple[float, float]:
        """The step's divergence at the largest group's learning rate, and what shortens it to ``max_kl``."""
        if self.max_kl is None:
            return float("nan"), 1.0
        lr = max(float(group["lr"]) for group in self.param_groups)
        kl = 0.5 * lr**2 * sum(block.decrement for block in solved)
        if not isfinite(kl):
            raise NotFinite("the divergence of the step")
        scale = min(1.0, (self.max_kl / kl) ** 0.5) if kl > 0 else 1.0
        return kl * scale**2, scale

    def _move(
        self, parameter: Tensor, group: dict[str, Any], rows: Tensor | None, block: _Solved, scale: float
    ) -> None:
        """``w <- (1 - lr wd) w - lr d``, without a temporary where there is no momentum.

        Gradient and score are added one after the other, while the weights they are added to are in the cache.
        """
        lr, momentum, factor = float(group["lr"]), group["momentum"], scale / group["damping"]
        target = local_shard(self.weight(parameter), parameter)
        if group["weight_decay"]:
            target.mul_(1 - lr * group["weight_decay"])
        receiver, rate = (self._buffer(parameter).mul_(momentum), 1.0) if momentum else (target, -lr)
        receiver.add_(upcast(local_shard(_gradient(parameter), parameter)), alpha=rate * factor)
        if rows is not None and len(block.weights) == 1:
            receiver.add_(upcast(rows)[0], alpha=-rate * factor * float(block.weights[0]))
        elif rows is not None:
            weights = torch.as_tensor(-rate * factor * block.weights).to(receiver)
            receiver.add_((weights @ _flat(upcast(rows))).view(receiver.shape))
        if momentum:
            target.add_(receiver, alpha=-lr)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(upcast(parameter))
        return local_shard(state["momentum_buffer"], parameter)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _flat(rows: Tensor) -> Tensor:
    """One score per row; a weight may have no axis, or no entry."""
    return rows.reshape(len(rows), rows[0].numel())


def _unscored(groups: Iterable[Tensor], rows: Rows) -> list[Tensor]:
    """Gradients that no score meets. A number in another that is not finite makes ``u'g`` so too: 0 times it is NaN."""
    return [_gradient(parameter) for parameter in groups if parameter not in rows]


def _inner_products(num_scores: int, rows: Rows, parameters: list[Tensor]) -> np.ndarray:
    """``[U'g, U'U]`` of every tensor, [tensor, m, 1 + m] in float64 on the CPU; zero where no score is."""
    products = np.zeros((len(parameters), num_scores, 1 + num_scores))
    reached = [index for index, parameter in enumerate(parameters) if parameter in rows]
    parts: list[Tensor] = []
    for parameter in (parameters[index] for index in reached):
        scores, gradient = upcast(rows[parameter]), upcast(local_shard(_gradient(parameter), parameter)).reshape(-1)
        if num_scores == 1:  # two calls less than the matrix products, for as small a tensor as a bias
            alone = scores.reshape(-1)
            parts += [torch.dot(alone, gradient), torch.dot(alone, alone)]
        else:
            flat = _flat(scores)
            parts.append(torch.cat(((flat @ gradient)[:, None], flat @ flat.T), 1))
    if parts:
        summed = sum_over_shards(parts, [parameters[index] for index in reached])
        products[reached] = summed.reshape(-1, num_scores, 1 + num_scores)
    return products
