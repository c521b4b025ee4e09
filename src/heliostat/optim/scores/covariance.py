r"""The covariance P of a Kalman filter over all weights: a diagonal, or a diagonal plus a few outer products, inverted.

    shrink    P^-1 <- P^-1 + c I
    measure   P^-1 <- P^-1 + H' R^-1 H,  which is  P <- P - P H' (H P H' + R)^-1 H P
    relax     P <- P / forgetting + process_noise I

``H`` is never one matrix: a row of it is a dictionary with one tensor per parameter, and inner products of rows are
summed over parameters. All numbers are in the optimizer's ``state``, by parameter.

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
    """A form of the covariance.

    Attributes:
        state: the optimizer's, by parameter.
        initial: variance of a weight that was never measured.
        rank: rows that a low-rank form keeps.
    """

    def __init__(self, state: OptimizerState, initial: float, rank: int) -> None:
        self.state, self.initial, self.rank = state, initial, rank

    @abstractmethod
    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Create the state of parameters that have none, with P ``initial`` times the identity."""

    @abstractmethod
    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        """Add to the inverse: ``P^-1 <- P^-1 + precision I``."""

    @abstractmethod
    def measure(self, rows: MeasurementRows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Update P by m measurements, and return ``P g`` with the new P.

        Args:
            rows: the m rows of H; a parameter that a row does not reach is absent from it.
            noise: the m variances on the diagonal of R, float64 on the CPU.
            gradient: ``g`` of every parameter to be moved.
        """

    @abstractmethod
    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        """Add process noise and forget: ``P <- P / forgetting + process_noise I``."""


class Diagonal(Covariance):
    """``P = diag(p)``: one variance per weight; of the exact update by a measurement only the diagonal is kept."""

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
        # With rows h_k: spread holds P h_k', system is S = H P H' + R, and the new P is P - P H' S^-1 H P.
        spread = [{p: self._variance(p) * u for p, u in row.items()} for row in rows]
        system = _products(rows, spread) + torch.diag(noise)
        inverse = torch.linalg.inv(system)
        along = torch.stack([_product(s, gradient) for s in spread])  # H P g
        weights = (inverse @ along).tolist()  # S^-1 H P g
        direction = {}
        for parameter, slope in gradient.items():
            variance = self._variance(parameter)
            move = variance * slope  # P g with the old P, then minus P H' S^-1 H P g
            given = [(i, s[parameter]) for i, s in enumerate(spread) if parameter in s]
            for i, column in given:
                move.sub_(column, alpha=weights[i])
            # The diagonal of P H' S^-1 H P: entry by entry, sum_ij column_i S^-1_ij column_j.
            for i, column in given:
                gained = sum((float(inverse[i, j]) * other for j, other in given), torch.zeros_like(column))
                variance.sub_(column * gained)
            variance.clamp_(min=torch.finfo(variance.dtype).tiny)  # rounding may leave 0 or less
            direction[parameter] = move
        return direction

    def relax(self, parameters: Sequence[Tensor], process_noise: float, forgetting: float) -> None:
        for parameter in parameters if process_noise or forgetting < 1 else ():
            self._variance(parameter).div_(forgetting).add_(process_noise)


class LowRank(Covariance):
    """``P^-1 = diag(d) + W' W`` with at most ``rank`` rows in W; a row that is dropped leaves its squares in ``d``.

    State of a parameter: ``precision`` (its part of ``d``), and ``rows`` (its part of W, of which the first
    ``num_rows`` are in use).
    """

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
        """Return the rows of W that are in use, [row, entry]."""
        self._precision(parameter)
        state = self.state[parameter]
        rows: Tensor = state["rows"][: state["num_rows"]].reshape(state["num_rows"], parameter.numel())
        return rows

    def shrink(self, parameters: Sequence[Tensor], precision: float) -> None:
        for parameter in parameters if precision else ():
            self._precision(parameter).add_(precision)

    def measure(self, rows: MeasurementRows, noise: Tensor, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        # A measurement adds the row R^(-1/2) h to W. Rows are numbered alike in every parameter, so that one rotation
        # applies to all: a parameter that entered later gets zeros for the rows it missed.
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
        """Rotate W so that its rows are orthogonal, keep the longest, and add the others' squares to the diagonal.

        A rotation of the rows does not change ``W'W``. Of ``r'r``, with r a dropped row, the diagonal is kept.
        """
        gram = sum(((flat @ flat.T).double().cpu() for flat in rows.values()), torch.zeros(1, 1, dtype=torch.float64))
        if len(gram) <= self.rank:
            return rows
        _, rotation = torch.linalg.eigh(gram)  # eigenvalues ascend: the longest rows are the last
        kept = {}
        for parameter, flat in rows.items():
            rotated = rotation.T.to(flat) @ flat
            self._precision(parameter).add_((rotated[: -self.rank] ** 2).sum(0).view(parameter.shape))
            kept[parameter] = rotated[-self.rank :]
        return kept

    def _solve(self, gradient: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Solve ``(diag(d) + W'W) x = g`` by Woodbury: ``x = D^-1 (g - W' w)``, ``(I + W D^-1 W') w = W D^-1 g``."""
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
        """Forget everywhere; add process noise to the diagonal's inverse only, which is exact where W is zero."""
        for parameter in parameters if process_noise or forgetting < 1 else ():
            precision = self._precision(parameter)
            precision.mul_(forgetting)
            precision.div_(1 + process_noise * precision)  # 1 / (1/d + process_noise)
            self.state[parameter]["rows"].mul_(forgetting**0.5)  # so that W'W is multiplied by `forgetting`


FORMS: dict[str, type[Covariance]] = {"diagonal": Diagonal, "low-rank": LowRank}


def _product(left: Mapping[Tensor, Tensor], right: Mapping[Tensor, Tensor]) -> Tensor:
    """Return the inner product over the parameters that both hold, as a float64 scalar."""
    both = [parameter for parameter in left if parameter in right]
    return torch.tensor(dot([left[p] for p in both], [right[p] for p in both]), dtype=torch.float64)


def _products(left: MeasurementRows, right: MeasurementRows) -> Tensor:
    """Return the inner products of all pairs, [left, right] in float64."""
    return torch.stack([torch.stack([_product(a, b) for b in right]) for a in left])
