"""Eva: per layer, a rank-one curvature from the running means of inputs and output gradients; no second backward pass.

Left out: convolutions; second moments (``ring``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from heliostat.curvature.kronecker import LayerMeans, MeanSums
from heliostat.optim.base.optimizer import ExtraPass, in_own_precision
from heliostat.optim.base.setting_ranges import check_settings
from heliostat.optim.distributed.replicas import Group
from heliostat.optim.distributed.sharded_tensors import all_finite
from heliostat.optim.layers.layer_optimizer import LayerOptimizer


class Eva(LayerOptimizer):
    r"""``W <- W - lr * [G - (b'Ga) / (damping + |a|^2 |b|^2) b a'] / damping`` for each linear layer.

    That is ``(damping I + (aa') (x) (bb'))^-1`` applied to the layer's gradient ``G``, with ``a`` the running mean of
    its inputs (1 for the bias) and ``b`` that of its output gradients. State: one number per input and output.

    Args:
        model: its linear layers are covered; everything else goes to AdamW. Hooks stay on it (``recorder.close``).
        lr: learning rate; the effective one is ``lr / damping``.
        damping: what the curvature is away from the means.
        ema: weight of the old mean in the running means.
        momentum: as in SGD.
        weight_decay: decoupled, as in AdamW.
        max_kl: shortens the step so that ``lr^2 <d, G> / 2`` over all layers is at most this.
        max_size: layers with a longer side go to AdamW.
        adamw_lr: AdamW's learning rate, for what is not covered.
        adamw_betas: AdamW's betas, likewise.
        process_group: averages the means over its ranks; ``None``: the default group, ``"alone"``: no others.
        skip_unscored: rows with a zero output gradient (padding) do not count as inputs.

    Raises:
        ValueError: a setting out of range.

    Limits:
        damping -> infinity: SGD with ``lr / damping``.
        ema = 0: ``Rank1NaturalGradient`` with block "layer" and the score ``b a'``, and for a single row the score of
        that row.
        the loss must be a mean over the rows a layer sees, so that the gradient of a bias is the mean ``b``.
        under ``torch.autocast``: means and steps are in the weights' own type.

    References:
        Zhang, Shi, Li, "Eva: practical second-order optimization with Kronecker-vectorized approximation", ICLR 2023.
        Reconstruction from public code; the ``max_kl`` bound is written in this project's form.
    """

    extra_pass: ClassVar[ExtraPass] = "none"
    whole_state: ClassVar[frozenset[str]] = frozenset({"input_mean", "output_mean", "momentum_buffer"})

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        damping: float = 0.03,
        ema: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        max_kl: float | None = None,
        max_size: int = 1 << 20,
        adamw_lr: float = 1e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        process_group: Group = None,
        skip_unscored: bool = False,
    ) -> None:
        check_settings({"ema": ema})
        self.ema = ema
        self._sums = MeanSums()
        super().__init__(
            model,
            self._sums,
            lr=lr,
            max_size=max_size,
            momentum=momentum,
            weight_decay=weight_decay,
            max_kl=max_kl,
            adamw_lr=adamw_lr,
            adamw_betas=adamw_betas,
            process_group=process_group,
            skip_unscored=skip_unscored,
            damping=damping,
        )
        self.recorder.is_recording = True

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients in place and the rows seen since the last step.

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
        gradients = [p.grad for group in self.param_groups for p in self.with_gradient(group) if p.grad is not None]
        seen = [vector for mean in means.values() for vector in (mean.inputs, mean.outputs)]
        if not all_finite([*gradients, *seen]):
            self.skip("the gradient or a layer's mean")
        else:
            self.commit(lambda: self._take(means))
        return loss

    def _take(self, means: dict[str, LayerMeans]) -> None:
        for name, mean in means.items():
            state = self.state_of(self.layers[name], len(mean.inputs), mean.inputs)
            weight = 1 - self.ema if state["num_means"] else 1.0
            for key, new in (("input_mean", mean.inputs), ("output_mean", mean.outputs)):
                state[key].mul_(1 - weight).add_(new, alpha=weight)
            state["num_means"] += 1
        self._move_all(self._direction)

    def _begin(self, state: dict[str, Any], matrix: Tensor) -> None:
        state["input_mean"], state["output_mean"] = torch.zeros_like(matrix[0]), torch.zeros_like(matrix[:, 0])
        state["num_means"] = 0

    def _direction(self, name: str, gradient: Tensor) -> Tensor:
        weight = self.layers[name].weight
        state = self.state_of(self.layers[name], gradient.shape[1], gradient)
        damping = self.damping_of(weight)
        a, b = state["input_mean"], state["output_mean"]
        along = torch.dot(b, gradient @ a) / (damping + torch.dot(a, a) * torch.dot(b, b))
        move: Tensor = torch.addr(gradient, b, a, alpha=-float(along)).div_(damping)
        return move
