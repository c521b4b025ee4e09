"""What is kept of a layer's inputs x and output gradients e: their means, or their second moments (Kronecker factors).

    F of one layer's matrix  ~  E[x x'] (x) E[e e']        (Martens & Grosse, 2015)

Left out: running averages over steps and inverses (the optimizers'), and where the labels come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.gram import gram


@dataclass(frozen=True, slots=True)
class KroneckerFactors:
    """Second moments of one layer's rows.

    Attributes:
        inputs: ``E[x x']``.
        outputs: ``E[e e']`` of per-row gradients.
    """

    inputs: Float[Tensor, "in in"]
    outputs: Float[Tensor, "out out"]


@dataclass(frozen=True, slots=True)
class LayerMeans:
    """Means of one layer's rows.

    Attributes:
        inputs: ``E[x]``.
        outputs: ``E[e]`` of per-row gradients.
    """

    inputs: Float[Tensor, " in"]
    outputs: Float[Tensor, " out"]


@dataclass(slots=True)
class _Sums:
    """Sums over rows and passes that add up over micro-batches and ranks."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    num_rows: dict[str, int] = field(default_factory=dict)

    def _accumulate(self, layer: str, inputs: Tensor, outputs: Tensor, num_rows: int) -> None:
        self.inputs[layer] = self.inputs[layer] + inputs if layer in self.inputs else inputs
        self.outputs[layer] = self.outputs[layer] + outputs if layer in self.outputs else outputs
        self.num_rows[layer] = self.num_rows.get(layer, 0) + num_rows

    def clear(self) -> None:
        """Forget everything."""
        self.inputs, self.outputs, self.num_rows = {}, {}, {}

    def over_ranks(self, ranks: dist.ProcessGroup) -> None:
        """Add the sums of all ranks up; every rank must have seen the same layers."""
        for layer in self.inputs:
            counted = torch.tensor(float(self.num_rows[layer]), device=self.inputs[layer].device)
            for tensor in (self.inputs[layer], self.outputs[layer], counted):
                dist.all_reduce(tensor, group=ranks)
            self.num_rows[layer] = round(float(counted))
            self.outputs[layer] *= self._of_rank_losses(dist.get_world_size(ranks))

    def _of_rank_losses(self, num_ranks: int) -> float:
        """What turns sums over ranks of what each rank's loss gave into what the mean of their losses gives."""
        raise NotImplementedError


@dataclass(slots=True)
class FactorSums(_Sums):
    """Sums of ``x x'`` and ``e e'``.

    Attributes:
        of_mean_loss: the differentiated scalar is the mean over rows, so that each row's own gradient is ``num_rows``
            times what is recorded; otherwise it is their sum.
    """

    of_mean_loss: bool = False

    def add(self, layer: str, inputs: Float[Tensor, "row in"], output_grads: Float[Tensor, "row out"]) -> None:
        """Take one pass's rows."""
        self._accumulate(layer, gram(inputs), gram(output_grads), len(inputs))

    def _of_rank_losses(self, num_ranks: int) -> float:
        return num_ranks**-2 if self.of_mean_loss else 1.0

    def take(self) -> dict[str, KroneckerFactors]:
        """The factors of every layer that saw rows; forgets them."""
        taken = {}
        for layer, count in self.num_rows.items():
            if count:
                scale = float(count) if self.of_mean_loss else 1 / count
                taken[layer] = KroneckerFactors(self.inputs[layer] / count, self.outputs[layer] * scale)
        self.clear()
        return taken


class MeanSums(_Sums):
    """Sums of ``x`` and ``e``, of a loss that is the mean over rows."""

    def add(self, layer: str, inputs: Float[Tensor, "row in"], output_grads: Float[Tensor, "row out"]) -> None:
        """Take one pass's rows."""
        self._accumulate(layer, inputs.sum(0), output_grads.sum(0), len(inputs))

    def _of_rank_losses(self, num_ranks: int) -> float:
        return 1 / num_ranks

    def take(self) -> dict[str, LayerMeans]:
        """The means of every layer that saw rows; forgets them."""
        taken = {
            layer: LayerMeans(self.inputs[layer] / count, self.outputs[layer])
            for layer, count in self.num_rows.items()
            if count
        }
        self.clear()
        return taken
