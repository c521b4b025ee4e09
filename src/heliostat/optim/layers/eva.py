"""Eva: per layer, a rank-one curvature from the running means of inputs and output gradients; no second backward pass.

Left out: convolutions; second moments (``ring``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from heliostat.curvature.kronecker import LayerMeans, MeanSums
from heliostat.optim.base.own_precision import ExtraPass, in_own_precision
from heliostat.optim.base.settings import settings_from
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.distributed.sharded_tensors import all_finite
from heliostat.optim.layers.layer_optimizer import LayerOptimizer, LayerSettings


@dataclass(frozen=True, kw_only=True)
class EvaSettings(LayerSettings):
    """Hyperparameters of ``Eva``.

    Attributes:
        damping: curvature in every direction but the means'; the effective learning rate is lr / damping.
        ema: weight of the old mean in the running means.
    """

    damping: float = 0.03
    ema: float = 0.05
    max_size: int = 1 << 20


class Eva(LayerOptimizer):
    r"""``W <- W - lr * [G - (b'Ga) / (damping + |a|^2 |b|^2) b a'] / damping`` for each linear layer.

    That is ``(damping I + (aa') (x) (bb'))^-1`` applied to the layer's gradient ``G``, with ``a`` the running mean of
    its inputs (1 for the bias) and ``b`` that of its output gradients. State: one number per input and output.

    Args:
        model: its linear layers are covered; everything else goes to AdamW. Hooks stay on it (``recorder.close``).
        lr: learning rate; the effective one is ``lr / damping``.
        settings: hyperparameters; the defaults of ``EvaSettings`` where not given.
        process_group: averages the means over its ranks; ``None``: the default group, ``"alone"``: no others.
        skip_zero_gradients: rows with a zero output gradient (padding) do not count as inputs.
        hyperparameters: fields of ``EvaSettings`` by name, such as ``damping=0.1``; they replace those of ``settings``.

    Raises:
        TypeError: a keyword is no field of ``EvaSettings``.
        ValueError: a setting out of range.

    Limits:
        damping -> infinity: SGD with ``lr / damping``.
        ema = 0: ``Rank1NaturalGradient`` with block "layer" and the score ``b a'``, and for a single row the score of
        that row.
        the loss must be a mean over the rows a layer sees, so that the gradient of a bias is the mean ``b``.
        under ``torch.autocast``: means and steps are in the weights' own dtype.

    References:
        Zhang, Shi, Li, "Eva: practical second-order optimization with Kronecker-vectorized approximation", ICLR 2023.
        Reconstruction from public code; the ``max_kl`` bound is written in this project's form.
    """

    extra_pass: ClassVar[ExtraPass] = "none"
    whole_state: ClassVar[frozenset[str]] = frozenset({"input_mean", "output_mean", "momentum_buffer"})
    settings: EvaSettings

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        settings: EvaSettings | None = None,
        *,
        process_group: ProcessGroup = None,
        skip_zero_gradients: bool = False,
        **hyperparameters: Any,
    ) -> None:
        own = settings_from(EvaSettings, settings, hyperparameters)
        self._sums = MeanSums()
        super().__init__(model, self._sums, lr, own, process_group, skip_zero_gradients)
        self.recorder.is_recording = True

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the gradients in place and the rows seen since the last step.

        Raises:
            RuntimeError: a layer has a gradient, but no pass through it was seen, or its parameters were replaced.
        """
        loss = self.run_closure(closure)
        self.refuse_replaced()
        ranks = self.checked_ranks()
        if ranks is not None:
            self._sums.over_ranks(ranks, self.layers)
        means = self._sums.take()
        if self.would_move_nothing():
            self._begin_all()
            return loss
        self.refuse_unseen(means)
        vectors = [vector for mean in means.values() for vector in (mean.inputs, mean.outputs)]
        if not all_finite([*self.gradients().values(), *vectors]):
            self.skip("the gradient or a layer's mean")
        else:
            self.commit(lambda: self._update(means))
        return loss

    def _update(self, means: dict[str, LayerMeans]) -> None:
        for name, mean in means.items():
            state = self.state_of(self.layers[name], len(mean.inputs), mean.inputs)
            # The first mean replaces the initial zeros: an average with them would be too short.
            weight = 1 - self.settings.ema if state["num_means"] else 1.0
            for key, new in (("input_mean", mean.inputs), ("output_mean", mean.outputs)):
                state[key].mul_(1 - weight).add_(new, alpha=weight)
            state["num_means"] += 1
        self._move_all(self._direction)

    def _begin(self, state: dict[str, Any], matrix: Tensor) -> None:
        state["input_mean"], state["output_mean"] = torch.zeros_like(matrix[0]), torch.zeros_like(matrix[:, 0])
        state["num_means"] = 0

    def _direction(self, name: str, gradient: Tensor) -> Tensor:
        """``[G - (b'Ga) / (damping + |a|^2 |b|^2) b a'] / damping``, by the formula of Sherman and Morrison."""
        weight = self.layers[name].weight
        state = self.state_of(self.layers[name], gradient.shape[1], gradient)
        damping = self.damping_of(weight)
        a, b = state["input_mean"], state["output_mean"]
        # vec(b a') is the vector whose outer product is the curvature; |vec(b a')|^2 = |a|^2 |b|^2.
        along = torch.dot(b, gradient @ a) / (damping + torch.dot(a, a) * torch.dot(b, b))
        move: Tensor = torch.addr(gradient, b, a, alpha=-float(along)).div_(damping)
        return move
