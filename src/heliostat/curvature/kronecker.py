"""Statistics of a layer's inputs x and output gradients e: their means, or their second moments (Kronecker factors).

    F of one layer's matrix  ~  E[x x'] (x) E[e e']        (Martens & Grosse, 2015)

Left out: running averages over steps and inverses (the optimizers'), and where the labels come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.cards import Card
from heliostat.curvature.recorder import num_columns
from heliostat.linalg.gram import gram

BUCKET = 1 << 20
"""Most numbers in one exchange between ranks, unless one tensor has more."""


@dataclass(frozen=True, slots=True, repr=False)
class KroneckerFactors(Card):
    """Second moments of one layer's rows.

    Attributes:
        inputs: ``E[x x']``.
        outputs: ``E[e e']`` of per-row gradients.
    """

    inputs: Float[Tensor, "in in"]
    outputs: Float[Tensor, "out out"]


@dataclass(frozen=True, slots=True, repr=False)
class LayerMeans(Card):
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

    inputs: dict[str, Float[Tensor, ...]] = field(default_factory=dict)
    outputs: dict[str, Float[Tensor, ...]] = field(default_factory=dict)
    num_rows: dict[str, int] = field(default_factory=dict)

    def _accumulate(
        self, layer: str, inputs: Float[Tensor, "*in"], outputs: Float[Tensor, "*out"], num_rows: int
    ) -> None:
        self.inputs[layer] = self.inputs[layer] + inputs if layer in self.inputs else inputs
        self.outputs[layer] = self.outputs[layer] + outputs if layer in self.outputs else outputs
        self.num_rows[layer] = self.num_rows.get(layer, 0) + num_rows

    def clear(self) -> None:
        """Forget everything."""
        self.inputs, self.outputs, self.num_rows = {}, {}, {}

    def over_ranks(self, ranks: dist.ProcessGroup, layers: Mapping[str, nn.Linear]) -> None:
        """Add up the sums of all ranks, over ``layers``; a rank that saw no rows of a layer adds zeros.

        It is a collective in which every rank takes part, whether it saw rows or not.
        """
        if not layers:
            return
        device = next(iter(layers.values())).weight.device
        counts = torch.tensor([self.num_rows.get(name, 0) for name in layers], device=device)
        dist.all_reduce(counts, group=ranks)
        self.num_rows = {name: count for name, count in zip(layers, counts.tolist(), strict=True) if count}
        for name in self.num_rows:
            if name not in self.inputs:
                self.inputs[name], self.outputs[name] = self._nothing(layers[name])
        _add_up([sums[name] for name in self.num_rows for sums in (self.inputs, self.outputs)], ranks)
        for name in self.num_rows:
            self.outputs[name] *= self._of_rank_losses(dist.get_world_size(ranks))

    def _nothing(self, layer: nn.Linear) -> tuple[Float[Tensor, "*in"], Float[Tensor, "*out"]]:
        """Return a layer's two sums over no rows."""
        raise NotImplementedError

    def _of_rank_losses(self, num_ranks: int) -> float:
        """Return the factor of output sums over ranks that makes them those of the mean of the ranks' losses."""
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
        """Add one pass's rows."""
        self._accumulate(layer, gram(inputs), gram(output_grads), len(inputs))

    def _nothing(self, layer: nn.Linear) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]]:
        inputs, outputs = _zeros(layer)
        return inputs.new_zeros(len(inputs), len(inputs)), outputs.new_zeros(len(outputs), len(outputs))

    def _of_rank_losses(self, num_ranks: int) -> float:
        return num_ranks**-2 if self.of_mean_loss else 1.0

    def take(self) -> dict[str, KroneckerFactors]:
        """Return the factors of every layer that saw rows, and reset the sums."""
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
        """Add one pass's rows."""
        self._accumulate(layer, inputs.sum(0), output_grads.sum(0), len(inputs))

    def _nothing(self, layer: nn.Linear) -> tuple[Float[Tensor, " in"], Float[Tensor, " out"]]:
        return _zeros(layer)

    def _of_rank_losses(self, num_ranks: int) -> float:
        return 1 / num_ranks

    def take(self) -> dict[str, LayerMeans]:
        """Return the means of every layer that saw rows, and reset the sums."""
        taken = {
            layer: LayerMeans(self.inputs[layer] / count, self.outputs[layer])
            for layer, count in self.num_rows.items()
            if count
        }
        self.clear()
        return taken


def _zeros(layer: nn.Linear) -> tuple[Float[Tensor, " in"], Float[Tensor, " out"]]:
    """Return one input row and one output row of zeros, in the dtype of statistics."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    sizes = (num_columns(layer), layer.out_features)
    inputs, outputs = (torch.zeros(size, dtype=dtype, device=layer.weight.device) for size in sizes)
    return inputs, outputs


def _add_up(tensors: Sequence[Float[Tensor, ...]], ranks: dist.ProcessGroup) -> None:
    """Replace every tensor by its sum over ranks; small ones share an exchange."""
    bucket: list[Float[Tensor, ...]] = []
    for index, tensor in enumerate(tensors):
        bucket.append(tensor)
        following = tensors[index + 1] if index + 1 < len(tensors) else None
        if following is not None and _fits(bucket, following):
            continue
        flat = torch.cat([part.reshape(-1) for part in bucket]) if len(bucket) > 1 else tensor.reshape(-1)
        dist.all_reduce(flat, group=ranks)
        for part, summed in zip(bucket, torch.split(flat, [part.numel() for part in bucket]), strict=True):
            part.copy_(summed.view_as(part))
        bucket = []


def _fits(bucket: Sequence[Float[Tensor, ...]], following: Float[Tensor, ...]) -> bool:
    same = (following.dtype, following.device) == (bucket[0].dtype, bucket[0].device)
    return same and sum(part.numel() for part in (*bucket, following)) <= BUCKET
