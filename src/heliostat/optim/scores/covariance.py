"""The filter's covariance P of all weights: a diagonal, or the inverse of a diagonal plus a few outer products.

Every form shrinks (``1/p <- 1/p + c``), takes measurements, and relaxes (process noise, forgetting). Everything lives
in the optimizer's ``state``, by parameter.

Left out: the choice of measurements and noise (``rkalman``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from heliostat.optim.base.snapshot import OptimizerState
from heliostat.optim.distributed.sharded_tensors import dot, upcast

CovarianceForm = Literal["diagonal", "low-rank"]
MeasurementRows = Sequence[Mapping[Tensor, Tensor]]


class Covariance(ABC):
    """What every form does.

    Attributes:
        state: the optimizer's, by parameter.
        initial: variance of a weight that was never measured.
    """

    def __init__(self, state: OptimizerState, initial: float, rank: int) -> None:
        self.state, self.initial, self.rank = state, initial, rank

    @abstractmethod
    def begin(self, parameters: Sequence[Tensor]) -> None:
        """State for parameters that have none: P is ``initial`` times the identity."""

    @abstractmethod
    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        """``P^-1 <- P^-1 + precision I``."""

    @abstractmethod
    def measure(self, rows: MeasurementRows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Take measurements with these rows of H and noise variances; returns ``P g`` with P after them."""

    @abstractmethod
    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        """``P <- P / forgetting + process_noise I``."""


class Diagonal(Covariance):
    """``P = diag(p)``: one variance per weight; after a measurement the diagonal of the full update is kept."""

    def _variance(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "variance" not in state:
            state["variance"] = torch.full_like(upcast(parameter), self.initial)
        variance: Tensor = state["variance"]
        return variance

    def begin(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            self._variance(parameter)

    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        for parameter in parameters if precision else ():
            variance = self._variance(parameter)
            variance.div_(1 + precision * variance)

    def measure(self, rows: MeasurementRows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        spread = [{p: self._variance(p) * u for p, u in row.items()} for row in rows]
        system = _products(rows, spread) + torch.diag(noise)
        inverse = torch.linalg.inv(system)
        along = torch.stack([_product(s, gradient) for s in spread])
        weights = (inverse @ along).tolist()
        direction = {}
        for parameter, slope in gradient.items():
            variance = self._variance(parameter)
            move = variance * slope
            given = [(i, s[parameter]) for i, s in enumerate(spread) if parameter in s]
            for i, column in given:
                move.sub_(column, alpha=weights[i])
            for i, column in given:
                gained = sum((float(inverse[i, j]) * other for j, other in given), torch.zeros_like(column))
                variance.sub_(column * gained)
            variance.clamp_(min=torch.finfo(variance.dtype).tiny)  # what rounding may take away
            direction[parameter] = move
        return direction

    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        for parameter in parameters if process_noise or forgetting < 1 else ():
            self._variance(parameter).div_(forgetting).add_(process_noise)


class LowRank(Covariance):
    """``P^-1 = diag(d) + W' W`` with at most ``rank`` rows in W; what falls out of W is kept on the diagonal."""

    def _precision(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "precision" not in state:
            state["precision"] = torch.full_like(upcast(parameter), 1 / self.initial)
            state["rows"], state["num_rows"] = state["precision"].new_zeros(self.rank, *parameter.shape), 0
        precision: Tensor = state["precision"]
        return precision

    def begin(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            self._precision(parameter)

    def _rows(self, parameter: Tensor) -> Tensor:
        """The rows of W that are in use, [row, entry]; the state has room for ``rank`` of them."""
        self._precision(parameter)
        state = self.state[parameter]
        rows: Tensor = state["rows"][: state["num_rows"]].reshape(state["num_rows"], parameter.numel())
        return rows

    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        for parameter in parameters if precision else ():
            self._precision(parameter).add_(precision)

    def measure(self, rows: MeasurementRows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        scaled = (noise**-0.5).tolist()
        found = {parameter: self._rows(parameter) for parameter in gradient}
        num_old = max((len(old) for old in found.values()), default=0)
        for parameter, old in found.items():
            missing = old.new_zeros(num_old - len(old), old.shape[1])
            zero = old.new_zeros(old.shape[1])
            new = [
                upcast(row[parameter]).reshape(-1) * s if parameter in row else zero
                for row, s in zip(rows, scaled, strict=True)
            ]
            found[parameter] = torch.cat([old, missing, torch.stack(new)])
        found = self._truncated(found)
        for parameter, kept in found.items():
            state = self.state[parameter]
            state["num_rows"] = len(kept)
            state["rows"][: len(kept)].copy_(kept.reshape(len(kept), *parameter.shape))
        return self._solve(gradient)

    def _truncated(self, rows: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Rotate W so that its rows are orthogonal, keep the longest, and put the others' squares on the diagonal."""
        gram = sum(((flat @ flat.T).double().cpu() for flat in rows.values()), torch.zeros(1, 1, dtype=torch.float64))
        if len(gram) <= self.rank:
            return rows
        _, rotation = torch.linalg.eigh(gram)
        kept = {}
        for parameter, flat in rows.items():
            rotated = rotation.T.to(flat) @ flat
            self._precision(parameter).add_((rotated[: -self.rank] ** 2).sum(0).view(parameter.shape))
            kept[parameter] = rotated[-self.rank :]
        return kept

    def _solve(self, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """``(diag(d) + W'W)^-1 g`` by Woodbury."""
        gram: Tensor = torch.zeros(1, 1, dtype=torch.float64)
        along: Tensor = torch.zeros(1, dtype=torch.float64)
        for parameter, slope in gradient.items():
            rows, precision = self._rows(parameter), self._precision(parameter).reshape(-1)
            scaled = rows / precision
            gram = gram + (scaled @ rows.T).double().cpu()
            along = along + (scaled @ upcast(slope).reshape(-1)).double().cpu()
        weights = torch.linalg.solve(gram + torch.eye(len(gram), dtype=torch.float64), along)
        direction = {}
        for parameter, slope in gradient.items():
            rows = self._rows(parameter)
            explained = (weights.to(rows) @ rows).view(slope.shape)
            direction[parameter] = (upcast(slope) - explained) / self._precision(parameter)
        return direction

    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        """Process noise enters the diagonal's inverse only: exact for the rows' complement."""
        for parameter in parameters if process_noise or forgetting < 1 else ():
            precision = self._precision(parameter)
            precision.mul_(forgetting)
            precision.div_(1 + process_noise * precision)
            self.state[parameter]["rows"].mul_(forgetting**0.5)


FORMS: dict[str, type[Covariance]] = {"diagonal": Diagonal, "low-rank": LowRank}


def _product(left: Mapping[Tensor, Tensor], right: Mapping[Tensor, Tensor]) -> Tensor:
    both = [parameter for parameter in left if parameter in right]
    return torch.tensor(dot([left[p] for p in both], [right[p] for p in both]), dtype=torch.float64)


def _products(left: MeasurementRows, right: MeasurementRows) -> Tensor:
    return torch.stack([torch.stack([_product(a, b) for b in right]) for a in left])
