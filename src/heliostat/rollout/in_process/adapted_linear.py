"""Linear maps as decoding reads them: plain ones, and ones with a low-rank adapter.

    y = x W + s (x A) B

In float32 the adapter is added to the weight once per batch of prompts, so it costs nothing in a pass. A narrow dtype
would round most of a small change away; there the adapters of several maps are kept apart, as two products for all.

Left out: any other adapter or use of one (DoRA, biases, several at once, adapters that PEFT has merged), which the
model runs itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.models.lora import NAME


@dataclass(frozen=True, slots=True)
class Adapter:
    """The low-rank change of one linear map.

    Attributes:
        down: ``A``, which maps the input to ``rank`` numbers.
        up: ``B``, which maps those to the output.
        scale: ``s``.
    """

    down: Float[Tensor, "rank input"]
    up: Float[Tensor, "output rank"]
    scale: float


@dataclass(frozen=True, slots=True)
class JoinedAdapters:
    """The adapters of several maps of one input, whose outputs are joined.

    **Limits**: a map without an adapter gets 0.
    """

    down: Float[Tensor, "ranks input"]
    up: Float[Tensor, "output ranks"]
    scale: float

    @classmethod
    def of(cls, linears: Sequence[nn.Module]) -> JoinedAdapters | None:
        """Join the adapters that these maps have now; ``None`` where none of them has one."""
        adapters = [adapter_of(linear) for linear in linears]
        own = [adapter for adapter in adapters if adapter is not None]
        if not own:
            return None
        ups = [
            own[0].up.new_zeros(base_of(linear).out_features, 0) if adapter is None else adapter.up
            for linear, adapter in zip(linears, adapters, strict=True)
        ]
        return cls(torch.cat([adapter.down for adapter in own]), torch.block_diag(*ups), own[0].scale)  # type: ignore[no-untyped-call]

    def __call__(self, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        inner = nn.functional.linear(x.to(self.down.dtype), self.down)
        return nn.functional.linear(inner, self.up) * self.scale


def is_linear_map(module: nn.Module) -> bool:
    """Return whether a module is a linear map in a form that is known here, and computes it by its class's forward."""
    return "forward" not in vars(module) and (type(module) is nn.Linear or _is_adapted(module))


def can_join(linears: Sequence[nn.Module]) -> bool:
    """Return whether maps of one input can be one product: with biases all or none, and adapters that are alike."""
    adapters = [adapter for adapter in map(adapter_of, linears) if adapter is not None]
    kinds = {(adapter.scale, adapter.down.dtype) for adapter in adapters}
    return len({base_of(linear).bias is None for linear in linears}) == 1 and len(kinds) <= 1


def base_of(linear: Any) -> nn.Linear:
    """Return the plain map itself, without its adapter."""
    base: nn.Linear = linear if type(linear) is nn.Linear else linear.base_layer
    return base


def adapter_of(linear: Any) -> Adapter | None:
    """Return the adapter that a map applies now; shares its memory."""
    if type(linear) is nn.Linear or linear.disable_adapters:
        return None
    down, up = linear.lora_A[NAME].weight, linear.lora_B[NAME].weight
    return Adapter(down.detach(), up.detach(), float(linear.scaling[NAME]))


def merges(linear: nn.Module) -> bool:
    """Return whether a map's adapter can be added to its weight with no more loss than a product has."""
    adapter = adapter_of(linear)
    return adapter is None or {base_of(linear).weight.dtype, adapter.down.dtype} == {torch.float32}


@torch.no_grad()
def merged_weight(linear: nn.Module) -> Float[Tensor, "output input"]:
    """Return ``W + s B A``, or ``W`` itself where there is no adapter."""
    weight, adapter = base_of(linear).weight.detach(), adapter_of(linear)
    return weight if adapter is None else torch.addmm(weight, adapter.up, adapter.down, alpha=adapter.scale)


def _is_adapted(module: Any) -> bool:
    """Return whether a module is PEFT's adapted linear layer, with one usual adapter and nothing else."""
    if not hasattr(module, "lora_A"):
        return False
    from peft.tuners.lora import Linear

    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and "forward" not in vars(module.base_layer)
        and module.active_adapters == [NAME]
        and NAME in module.lora_A
        and not module.merged
        and not module.lora_variant
        and not module.lora_bias[NAME]
        and isinstance(module.lora_dropout[NAME], nn.Identity)
    )
