"""R-Kalman: parameters as the state of an extended Kalman filter, with a covariance that is diagonal or low-rank.

    measurement rows H [m, d] with noise R:   S = H P H' + R,   K = P H' S^-1,   P <- P - K H P

A step along the measurement's own gradient is ``K (y - h)``; along another gradient g it is ``-P g`` with the new P.
Both are ``-P g`` once ``g = -H' R^-1 (y - h)``, which is how one update serves every kind of measurement.

Left out: full covariances, and Jacobians of large outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.optim.base.own_precision import in_own_precision
from heliostat.optim.base.saving import GroupNumber
from heliostat.optim.base.settings import check_settings, settings_from
from heliostat.optim.base.snapshot import OptimizerState
from heliostat.optim.base.update_parts import NotFinite, decay_
from heliostat.optim.distributed.replicas import (
    ProcessGroup,
    average,
    gather_rows,
    is_sharded,
    without_gradient_averaging,
)
from heliostat.optim.distributed.sharded_tensors import all_finite, dot, upcast
from heliostat.optim.scores.covariance import FORMS, Covariance, CovarianceForm, MeasurementRows
from heliostat.optim.scores.score_buffer import ScoreBuffer
from heliostat.optim.scores.score_optimizer import ScoreOptimizer

Measurement = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class RKalmanSettings:
    """Hyperparameters of ``RKalman``.

    Attributes:
        rho: weight of the gradient penalty that shrinks the covariance.
        covariance: initial variance of every weight; the first effective learning rate is lr * covariance.
        process_noise: variance added to every weight after a step; without it or ``forgetting`` steps die out like 1/k.
        forgetting: the covariance is divided by this after a step, in (0, 1]; 1 forgets nothing.
        form: keep the covariance's diagonal, or a low-rank precision.
        rank: rows of the low-rank form, whose remainder is kept as a diagonal.
        num_scores: samples whose scores each step takes on each process, one backward pass each.
        weight_decay: decoupled.
    """

    rho: float = 0.0
    covariance: float = 1e-2
    process_noise: float = 0.0
    forgetting: float = 1.0
    form: CovarianceForm = "diagonal"
    rank: int = 16
    num_scores: int = 1
    weight_decay: float = 0.0


class RKalman(ScoreOptimizer):
    r"""``w <- w + lr * K (y - h)`` with gain ``K`` of a Kalman filter whose prior shrinks with the gradient.

    Three kinds of measurement, one per way of calling ``step``:

    * ``step(measurement=...)``: the outputs themselves, exact for few outputs: ``H`` is their Jacobian.
    * ``step(loss=value)``: the loss as a scalar measurement whose target is 0, with the gradient in place as ``H``: for
      losses that are 0 at a perfect fit. Not in the paper (it is the form of KOALA).
    * scores, by ``with optimizer.score()``: each sampled log-probability is a measurement, so that ``P^-1`` gathers
      the Fisher matrix, and the step is ``-P g`` for the gradient in place, of any objective. Not in the paper.

    Before each update ``P`` shrinks as the gradient penalty ``(rho/2) |g|^2 |step|^2`` asks:
    ``1/p <- 1/p + rho |g|^2``; afterwards process noise is added and the past is forgotten.

    Args:
        params: a module, its parameters, or groups.
        lr: scales the step; 1 is the filter's own.
        settings: hyperparameters; the defaults of ``RKalmanSettings`` where not given.
        noise: initial measurement noise R of outputs and losses.
        noise_ema: weight of the old R in its running average of squared innovations; 1 keeps R constant.
        process_group: outputs or scores of all its ranks are gathered, and losses averaged. ``None``: the default
            group, ``"alone"``: no others.
        hyperparameters: fields of ``RKalmanSettings`` by name, such as ``form="low-rank"``; they replace those of
            ``settings``.

    Raises:
        TypeError: a keyword is no field of ``RKalmanSettings``.
        ValueError: a setting out of range.

    Limits:
        low-rank with ``rank`` at least the rows seen: the full filter, which is the information form
        ``P^-1 <- P^-1 + rho |g|^2 I + H' R^-1 H``.
        one weight: both forms are the full filter.
        process_noise = 0, forgetting = 1: variances never grow.

    References:
        Dash, Abdi, Pan, Kaski, Sun, arXiv 2601.18420 (2026) for the method; Abdi et al., arXiv 2410.11551 (2024) for
        the diagonal covariance and the running noise. Reconstruction: neither body was available, and the place of
        ``rho``, process noise, forgetting and the low-rank form are ours.
    """

    group_numbers: ClassVar[tuple[str, ...]] = (*ScoreOptimizer.group_numbers, "noise")
    noise = GroupNumber(1.0)
    settings: RKalmanSettings

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        settings: RKalmanSettings | None = None,
        *,
        noise: float = 1.0,
        noise_ema: float = 0.95,
        process_group: ProcessGroup = None,
        **hyperparameters: Any,
    ) -> None:
        self.settings = own = settings_from(RKalmanSettings, settings, hyperparameters)
        check_settings({"noise": noise, "noise_ema": noise_ema})
        self.noise_ema = noise_ema
        super().__init__(params, {"lr": lr, "weight_decay": own.weight_decay}, own.num_scores, process_group)
        self.noise = float(noise)
        self.covariance: Covariance = FORMS[own.form](self.state, own.covariance, own.rank)

    @in_own_precision
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        measurement: Measurement | None = None,
        loss: float | None = None,
        score_closure: Callable[[], Tensor] | None = None,
    ) -> Any:
        """Take one measurement and one step.

        Args:
            closure: optional; puts the gradients in place and returns the loss.
            measurement: returns the outputs [m] with graph, and their targets [m].
            loss: the loss whose gradient is in place.
            score_closure: returns the log-probabilities of the samples, shape [num_scores], with graph.

        Raises:
            RuntimeError: scores are missing, and no other measurement was given.
        """
        returned = self.run_closure(closure)
        self.run_score_closure(score_closure)
        if measurement is None and loss is None and self._scores.is_empty and self.would_move_nothing():
            given = list(self.gradients())
            self.covariance.begin(given)
            for parameter in given:
                self.weight(parameter)
            return returned
        ranks = self.checked_ranks()
        if measurement is not None:
            found = self._of_outputs(measurement, ranks)
        elif loss is not None:
            found = self._of_loss(float(loss), ranks)
        else:
            found = self._of_scores(ranks)
        rows, noise, gradient, innovation = found
        if not all_finite([*gradient.values(), *(u for row in rows for u in row.values()), noise]):
            self.skip("the gradient, a score or an innovation")
        elif self.commit(lambda: self._update(rows, noise, gradient)) and innovation is not None:
            self.noise = self.noise_ema * self.noise + (1 - self.noise_ema) * innovation
        return returned

    def _update(self, rows: MeasurementRows, noise: Tensor, gradient: dict[Tensor, Tensor]) -> None:
        tensors = list(gradient.values())
        precision = self.settings.rho * dot(tensors, tensors) if self.settings.rho else 0.0
        if not isfinite(precision):
            raise NotFinite("the squared gradient")
        self.covariance.shrink(list(gradient), precision)
        direction = self.covariance.measure(rows, noise, gradient)
        self.covariance.relax(list(gradient), self.settings.process_noise, self.settings.forgetting)
        self._move(direction)

    # -- the three kinds of measurement -------------------------------------------------------------------------------
    # Each returns rows of H, noise R, the gradient to step along, and the mean squared innovation, if R follows it.

    def _of_outputs(
        self, measurement: Measurement, ranks: dist.ProcessGroup | None
    ) -> tuple[MeasurementRows, Tensor, dict[Tensor, Tensor], float | None]:
        with self.callers_mode(), without_gradient_averaging():
            outputs, targets = measurement()
            buffer = ScoreBuffer()
            buffer.differentiate(outputs, self.parameters())
        innovations = (targets - outputs).detach().reshape(-1).double()
        rows = buffer.take(len(innovations), self.parameters(), ranks)
        if ranks is not None and not is_sharded(self.parameters()):
            # The rows are ordered by output first and by rank second; innovations follow them.
            innovations = gather_rows(innovations[None], ranks).T.reshape(-1)
        innovations = innovations.cpu()
        noise = torch.full_like(innovations, self.noise)
        gradient: dict[Tensor, Tensor] = {}
        for row, innovation in zip(rows, innovations.tolist(), strict=True):
            for parameter, u in row.items():
                before = gradient.get(parameter)
                part = upcast(u) * (-innovation / self.noise)
                gradient[parameter] = part if before is None else before + part
        return rows, noise, gradient, float((innovations**2).mean())

    def _of_loss(
        self, loss: float, ranks: dist.ProcessGroup | None
    ) -> tuple[MeasurementRows, Tensor, dict[Tensor, Tensor], float | None]:
        row = self.gradients()
        if ranks is not None:
            mean = torch.tensor([loss], dtype=torch.float64, device=self.parameters()[0].device)
            average([mean], ranks)
            loss = float(mean)
        noise = torch.tensor([self.noise], dtype=torch.float64)
        return [row], noise + 0.0 * loss, {p: upcast(g) * (loss / self.noise) for p, g in row.items()}, loss**2

    def _of_scores(
        self, ranks: dist.ProcessGroup | None
    ) -> tuple[MeasurementRows, Tensor, dict[Tensor, Tensor], float | None]:
        scores = self._scores.take(self.num_scores, self.parameters(), ranks)
        gradient = self.gradients()
        rows = [{p: u for p, u in score.items() if p in gradient} for score in scores]
        noise = torch.full((len(rows),), float(len(rows)), dtype=torch.float64)
        return rows, noise, gradient, None

    def _written(self) -> tuple[list[Tensor], OptimizerState]:
        """Return every weight: outputs are measured along weights without a gradient too."""
        return self.parameters(), super()._written()[1]

    def _move(self, direction: dict[Tensor, Tensor]) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in direction:
                    weight = self.weight(parameter)
                    decay_(weight, group)
                    weight.sub_(group["lr"] * direction[parameter])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.covariance.state = self.state
