"""Natural gradient with a Fisher matrix of rank one (or m): Sherman-Morrison, Woodbury, no d x d object.

    F = D + (1/m) sum_k u_k u_k',   d = F^-1 g = D^-1 (g - U w),   (m I + U' D^-1 U) w = U' D^-1 g

with ``u_k`` the score function (gradient of the log-probability) of one sample each and ``D`` the damping. The method
of one sampled score is that of Huo, Dash, Stoican, Kaski and Sun; several scores, blocks, averages, momentum and the KL
bound are ours.

Left out: the choice of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.optim.base.own_precision import in_own_precision
from heliostat.optim.base.settings import settings_from
from heliostat.optim.base.update_parts import bounded_divergence, decay_, momentum_buffer
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.distributed.sharded_tensors import all_finite, local_shard, upcast
from heliostat.optim.scores.fisher_blocks import (
    BLOCKS,
    BlockSolution,
    flat_rows,
    gradient_of,
    inner_products,
    solve_blocks,
)
from heliostat.optim.scores.score_buffer import ScoreRows
from heliostat.optim.scores.score_optimizer import ScoreOptimizer


@dataclass(frozen=True, kw_only=True)
class Rank1Settings:
    """Hyperparameters of ``Rank1NaturalGradient``.

    Attributes:
        damping: what the Fisher matrix is away from the scores; the effective learning rate is lr / damping.
        num_scores: samples whose scores each step takes on each process, one backward pass each.
        block: one Fisher matrix over all parameters, one per tensor, or one per layer.
        ema: weight of the old mean in a running mean of each of the scores; 0 keeps no memory. Scores have mean zero,
            so the mean of independent ones is shorter: by ``(1 - ema) / (1 + ema)`` in ``|u|^2``.
        momentum: of the natural gradient: ``b <- momentum * b + d``.
        weight_decay: decoupled: ``w <- w - lr * weight_decay * w``.
        max_kl: shortens the step (before momentum) so that ``lr^2 g'd / 2``, its divergence in F, is at most this, in
            nats; empty: never.
    """

    damping: float = 1.0
    num_scores: int = 1
    block: Literal["global", "param", "layer"] = "global"
    ema: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Rank1Report:
    """Measurements of the last step.

    Attributes:
        score_square_norm: mean of ``|u_k|^2`` over the scores; heavy-tailed for policies that become certain.
        kl: half the damped quadratic form of the step without momentum, in nats; NaN without ``max_kl``.
        scale: factor by which ``max_kl`` shortened the step.
    """

    score_square_norm: float
    kl: float
    scale: float


class Rank1NaturalGradient(ScoreOptimizer):
    r"""``w <- w - lr * (damping I + (1/m) sum_k u_k u_k')^-1 g`` with the scores ``u_k`` of m samples.

    ``F^-1 g = (1/damping) (g - u (u'g) / (damping + u'u))`` for one score: two inner products, no stored state.
    The effective learning rate is ``lr / damping``: compare it, not ``lr``, with another method's.

    Args:
        params: parameters, named parameters (needed for ``block="layer"``), or groups.
        lr: learning rate; the step is ``lr * d``.
        settings: hyperparameters; the defaults of ``Rank1Settings`` where not given. ``damping``, ``momentum`` and
            ``weight_decay`` may differ by group.
        source: ``scores``: the samples' scores, given before each step; ``gradient``: u is g itself, nothing is given.
        process_group: scores of all its ranks are gathered: with R ranks F has R * m of them. ``None``: the default
            group, ``"alone"``: no others. Each rank takes scores of samples of its own, from a forward pass that begins
            inside ``score()``, where DDP averages nothing. Of weights sharded over ranks a score is that of all ranks'
            rows: let each run the same sample.
        hyperparameters: fields of ``Rank1Settings`` by name, such as ``damping=0.1``; they replace those of
            ``settings``.

    Raises:
        TypeError: a keyword is no field of ``Rank1Settings``.
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

    settings: Rank1Settings

    def __init__(
        self,
        params: Any,
        lr: float,
        settings: Rank1Settings | None = None,
        *,
        source: Literal["scores", "gradient"] = "scores",
        process_group: ProcessGroup = None,
        **hyperparameters: Any,
    ) -> None:
        self.settings = own = settings_from(Rank1Settings, settings, hyperparameters)
        if source not in ("scores", "gradient"):
            raise ValueError(f"source must be 'scores' or 'gradient', got '{source}'")
        if source == "gradient" and own.num_scores != 1:
            raise ValueError(f"source='gradient' has one u, the gradient: num_scores must be 1, got {own.num_scores}")
        self.source = source
        self.report: Rank1Report | None = None
        defaults = {"lr": lr, "damping": own.damping, "momentum": own.momentum, "weight_decay": own.weight_decay}
        super().__init__(params, defaults, own.num_scores, process_group)
        if own.block == "layer" and "param_names" not in self.param_groups[0]:
            raise ValueError("block='layer' needs names: pass model.named_parameters()")

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
        """Take one step on the gradients in place and the scores given since the last one.

        Args:
            closure: optional; puts the gradients in place and returns the loss.
            score_closure: optional; returns the log-probabilities of the m samples, shape [m], with their graph.
            scores: optional; the m scores themselves by parameter, each ``[m, *parameter.shape]``, as
                ``torch.func`` makes them.

        Raises:
            RuntimeError: not as many scores as ``num_scores``, or scores that reach none of the parameters.
        """
        loss = self.run_closure(closure)
        self.run_score_closure(score_closure)
        if scores is not None:
            self._scores.add(scores, self.parameters())
        if self._scores.is_empty and self.would_move_nothing():
            self._begin_all()
            return loss
        groups = self.groups_with_gradient()
        ranks = self.checked_ranks()
        num_scores, rows = self._take(ranks)
        if not groups:
            return loss
        products = inner_products(num_scores, rows, list(groups))
        squares = float(products.sum(0)[:, 1:].trace()) / num_scores
        if not (isfinite(squares) and np.isfinite(products).all() and all_finite(_unscored(groups, rows))):
            self.skip("the gradient or a score")
            return loss
        self.commit(lambda: self._move_all(num_scores, rows, products, groups, squares))
        return loss

    def _move_all(
        self,
        num_scores: int,
        rows: ScoreRows,
        products: np.ndarray,
        groups: dict[Tensor, dict[str, Any]],
        squares: float,
    ) -> None:
        if self.settings.ema:
            rows = self._remember(num_scores, rows)
            products = inner_products(num_scores, rows, list(groups))
        blocks = BLOCKS[self.settings.block](groups)
        solved = solve_blocks(blocks, products, groups, with_decrement=self.settings.max_kl is not None)
        lr = max(float(group["lr"]) for group in self.param_groups)
        kl, scale = bounded_divergence(self.settings.max_kl, lr, lambda: sum(block.decrement for block in solved))
        for block in solved:
            for parameter in block.parameters:
                self._move(parameter, groups[parameter], rows.get(parameter), block, scale)
        self.report = Rank1Report(squares, kl, scale)

    def _begin_all(self) -> None:
        """Create the state of every parameter that has a gradient, before any step."""
        for group in self.param_groups:
            for parameter in self.with_gradient(group):
                self.weight(parameter)
                if group["momentum"]:
                    self._buffer(parameter)
                for index in range(self.num_scores if self.settings.ema else 0):
                    self._mean(parameter, index)

    def _take(self, ranks: dist.ProcessGroup | None) -> tuple[int, ScoreRows]:
        """Return the number of scores, and this rank's shards of them."""
        if self.source == "gradient":
            return 1, {p: local_shard(p.grad, p)[None] for p in self.parameters() if p.grad is not None}
        return self._scores.take_rows(self.num_scores, self.parameters(), ranks)

    def _remember(self, num_scores: int, rows: ScoreRows) -> ScoreRows:
        """Update the running mean of the first score, of the second, and so on, and return the means in their place."""
        means: ScoreRows = {}
        for parameter in self.parameters():
            new = upcast(rows[parameter]) if parameter in rows else None
            for index in range(num_scores):
                mean = self._mean(parameter, index).mul_(self.settings.ema)
                if new is not None:
                    mean.add_(new[index], alpha=1 - self.settings.ema if self.state[parameter]["num_means"] else 1.0)
            self.state[parameter]["num_means"] += 1
            means[parameter] = torch.stack([self._mean(parameter, index) for index in range(num_scores)])
        return means

    def _mean(self, parameter: Tensor, index: int) -> Tensor:
        state = self.state[parameter]
        state.setdefault("num_means", 0)
        if f"score_mean_{index}" not in state:
            state[f"score_mean_{index}"] = torch.zeros_like(upcast(parameter))
        return local_shard(state[f"score_mean_{index}"], parameter)

    def _move(
        self, parameter: Tensor, group: dict[str, Any], rows: Tensor | None, block: BlockSolution, scale: float
    ) -> None:
        """Apply ``w <- (1 - lr weight_decay) w - lr d`` to one parameter.

        ``d = (g - U w) scale / damping`` is never formed: gradient and scores are added to the weight itself, or to the
        momentum, one after the other while it is in the cache.
        """
        lr, momentum, factor = float(group["lr"]), group["momentum"], scale / group["damping"]
        target = local_shard(self.weight(parameter), parameter)
        decay_(target, group)
        # Into the momentum d goes as it is, into the weight times -lr.
        receiver, rate = (self._buffer(parameter).mul_(momentum), 1.0) if momentum else (target, -lr)
        receiver.add_(upcast(local_shard(gradient_of(parameter), parameter)), alpha=rate * factor)
        if rows is not None and len(block.weights) == 1:
            receiver.add_(upcast(rows)[0], alpha=-rate * factor * float(block.weights[0]))
        elif rows is not None:
            weights = torch.as_tensor(-rate * factor * block.weights).to(receiver)
            receiver.add_((weights @ flat_rows(upcast(rows))).view(receiver.shape))
        if momentum:
            target.add_(receiver, alpha=-lr)

    def _buffer(self, parameter: Tensor) -> Tensor:
        return local_shard(momentum_buffer(self.state[parameter], parameter), parameter)


def _unscored(groups: Iterable[Tensor], rows: ScoreRows) -> list[Tensor]:
    """List gradients that no score meets; a NaN or infinity in another one is seen in its product ``u'g``."""
    return [gradient_of(parameter) for parameter in groups if parameter not in rows]
