"""The filter's covariance P of all weights: a diagonal, or the inverse of a diagonal plus a few outer products.

Every form shrinks (``1/p <- 1/p + c``), takes measurements, and relaxes (process noise, forgetting). Everything lives
in the optimizer's ``state``, by parameter.

Left out: the choice of measurements and noise (``rkalman``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from heliostat.optim.reductions import dot, wide

CovarianceForm = Literal["diagonal", "low-rank"]
Rows = Sequence[Mapping[Tensor, Tensor]]
State = dict[Tensor, dict[str, Any]]


class Covariance(ABC):
    """What every form does.

    Attributes:
        state: the optimizer's, by parameter.
        initial: variance of a weight that was never measured.
    """

    def __init__(self, state: State, initial: float, rank: int) -> None:
        self.state, self.initial, self.rank = state, initial, rank

    @abstractmethod
    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        """``P^-1 <- P^-1 + precision I``."""

    @abstractmethod
    def measure(self, rows: Rows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Take measurements with these rows of H and noise variances; returns ``P g`` with P after them."""

    @abstractmethod
    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        """``P <- P / forgetting + process_noise I``."""


class Diagonal(Covariance):
    """``P = diag(p)``: one variance per weight; after a measurement the diagonal of the full update is kept."""

    def _variance(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "variance" not in state:
            state["variance"] = torch.full_like(wide(parameter), self.initial)
        variance: Tensor = state["variance"]
        return variance

    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        for parameter in parameters if precision else ():
            variance = self._variance(parameter)
            variance.div_(1 + precision * variance)

    def measure(self, rows: Rows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
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
            state["precision"] = torch.full_like(wide(parameter), 1 / self.initial)
            state["rows"] = torch.zeros(0, *parameter.shape, dtype=state["precision"].dtype, device=parameter.device)
        precision: Tensor = state["precision"]
        return precision

    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        for parameter in parameters if precision else ():
            self._precision(parameter).add_(precision)

    def measure(self, rows: Rows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        scaled = (noise**-0.5).tolist()
        num_old = max((len(self.state[p]["rows"]) for p in gradient if "rows" in self.state[p]), default=0)
        for parameter in gradient:
            self._precision(parameter)
            old = self.state[parameter]["rows"]
            missing = old.new_zeros(num_old - len(old), *parameter.shape)
            zero = torch.zeros_like(self._precision(parameter))
            new = torch.stack(
                [wide(row[parameter]) * s if parameter in row else zero for row, s in zip(rows, scaled, strict=True)]
            )
            self.state[parameter]["rows"] = torch.cat([old, missing, new])
        self._truncate(list(gradient))
        return self._solve(gradient)

    def _truncate(self, parameters: list[Tensor]) -> None:
        """Rotate W so that its rows are orthogonal, keep the longest, and put the others' squares on the diagonal."""
        gram = sum((_gram(self.state[p]["rows"]) for p in parameters), torch.zeros(1, 1, dtype=torch.float64))
        if len(gram) <= self.rank:
            return
        _, rotation = torch.linalg.eigh(gram)
        for parameter in parameters:
            state = self.state[parameter]
            rotated = torch.tensordot(rotation.T.to(state["rows"]), state["rows"], dims=1)
            state["precision"].add_((rotated[: -self.rank] ** 2).sum(0))
            state["rows"] = rotated[-self.rank :].clone()

    def _solve(self, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """``(diag(d) + W'W)^-1 g`` by Woodbury."""
        gram: Tensor = torch.zeros(1, 1, dtype=torch.float64)
        along: Tensor = torch.zeros(1, dtype=torch.float64)
        for parameter, slope in gradient.items():
            rows, precision = self.state[parameter]["rows"].flatten(1), self._precision(parameter).reshape(-1)
            scaled = rows / precision
            gram = gram + (scaled @ rows.T).double().cpu()
            along = along + (scaled @ wide(slope).reshape(-1)).double().cpu()
        weights = torch.linalg.solve(gram + torch.eye(len(gram), dtype=torch.float64), along)
        direction = {}
        for parameter, slope in gradient.items():
            rows = self.state[parameter]["rows"]
            explained = torch.tensordot(weights.to(rows), rows, dims=1)
            direction[parameter] = (wide(slope) - explained) / self._precision(parameter)
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


def _products(left: Rows, right: Rows) -> Tensor:
    return torch.stack([torch.stack([_product(a, b) for b in right]) for a in left])


def _gram(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    return (flat @ flat.T).double().cpu()
