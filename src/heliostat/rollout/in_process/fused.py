"""A decoding pass through layers of Llama's shape, in fewer calls than the model's own modules make.

    x -> norm -> [q k v] -> rotate -> attend -> o, + x -> norm -> [gate up] -> silu, product -> down, + x    each layer

A decoding pass has few rows, so the cost of a layer is reading its weights and the overhead of each call. Linear maps
of the same input are therefore one product (q, k and v; gate and up), and residuals are added inside the product
(``fused_linear``).

Left out: layers of any other shape, which the model runs itself. Embedding, rotary angles, norms
and head are the model's own everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from heliostat.models import LoadedModel
from heliostat.rollout.in_process.adapted_linear import can_join, is_linear_map
from heliostat.rollout.in_process.fused_linear import FusedLinear
from heliostat.rollout.in_process.shared import SharedRows, agrees

# Children that a module must have, no more and no fewer: an unknown one might take part in the forward pass.
BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer: its four products, and the model's own norms.

    Attributes:
        parts: the modules that the products were made of; replaced ones are found by ``is_of``.
    """

    qkv: FusedLinear
    o: FusedLinear
    gate_up: FusedLinear
    down: FusedLinear
    norms: tuple[nn.Module, nn.Module]
    parts: tuple[nn.Module, ...]

    @property
    def products(self) -> tuple[FusedLinear, ...]:
        """The four products."""
        return self.qkv, self.o, self.gate_up, self.down

    @classmethod
    def of(cls, layer: Any) -> FusedLayer:
        """Build the fused form of a transformers layer."""
        q, k, v, o, gate, up, down, *norms = parts = _parts(layer)
        products = FusedLinear(q, k, v), FusedLinear(o), FusedLinear(gate, up), FusedLinear(down)
        return cls(*products, (norms[0], norms[1]), parts)

    def is_of(self, layer: Any) -> bool:
        """Return whether the layer still consists of the modules that were fused."""
        return all(mine is own for mine, own in zip(self.parts, _parts(layer), strict=True))


class FusedLayers:
    """A model's backbone with fused layers, for rows that are fed one token each.

    Args:
        reorders: whether products use reordered copies of the weights.
    """

    def __init__(self, backbone: Any, reorders: bool) -> None:
        self._backbone, self._reorders = backbone, reorders
        self._layers = [FusedLayer.of(layer) for layer in backbone.layers]
        attention = backbone.layers[0].self_attn
        self._width, self._scaling = attention.head_dim, attention.scaling
        self._num_heads = attention.q_proj.out_features // self._width
        self._num_shared = attention.k_proj.out_features // self._width
        self._activation = backbone.layers[0].mlp.act_fn

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within this context, decode with the weights that the model had at its beginning.

        Raises:
            RuntimeError: layers have been replaced since, by adapters for example.
        """
        if not all(mine.is_of(layer) for mine, layer in zip(self._layers, self._backbone.layers, strict=True)):
            raise RuntimeError(
                "the model's layers were replaced after its rollout engine was built; add adapters first, then build "
                "the engine"
            )
        products = [product for layer in self._layers for product in layer.products] if self._reorders else []
        try:
            for product in products:
                product.reorder()
            yield
        finally:
            for product in products:
                product.drop()

    def hidden(
        self, rows: SharedRows, token: Int[Tensor, "row 1"], real: Bool[Tensor, "row 1"] | None = None
    ) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token and return the hidden states after it; see ``LiveRows.hidden``."""
        # Once per pass: `attend` below uses the mask in every layer.
        positions = rows.begin_pass(torch.ones_like(token, dtype=torch.bool) if real is None else real)
        x = self._backbone.embed_tokens(token)
        # [row, 1, feature]: one token per row, so the dimension of tokens serves to broadcast over heads.
        cos, sin = (each.squeeze(1)[:, None] for each in self._backbone.rotary_emb(x, positions))
        # transformers rotates by x cos + rotate_half(x) sin, where rotate_half negates the second half and swaps both.
        # Here the sign goes into sin once per pass, and the swap is a roll by half the width.
        half = self._width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        x = x.squeeze(1)
        num_rows, num_rotated = len(x), self._num_heads + self._num_shared
        for index, layer in enumerate(self._layers):
            # [row, query heads then key heads then value heads, feature]; queries and keys are rotated together.
            states = layer.qkv(layer.norms[0](x)).view(num_rows, -1, self._width)
            rotated = states[:, :num_rotated]
            rotated = _sum_of_products(rotated, cos, rotated.roll(half, dims=-1), sin).float()
            # Grouped queries: the query heads that share a key head become one dimension, as SharedRows expects.
            query = (rotated[:, : self._num_heads] * self._scaling).view(num_rows, self._num_shared, -1, self._width)
            key, value = rotated[:, self._num_heads :, None], states[:, num_rotated:, None]
            x = layer.o.onto(x, rows.attend(index, query, key, value).view(num_rows, -1).to(x.dtype))
            # SwiGLU: down(silu(gate(x)) * up(x)), with gate and up as halves of one product.
            gate, up = layer.gate_up(layer.norms[1](x)).chunk(2, dim=-1)
            x = layer.down.onto(x, self._activation(gate).mul_(up))
        last: Tensor = self._backbone.norm(x)
        return last.unsqueeze(1)


def fused_layers(loaded: LoadedModel, reorders: bool) -> FusedLayers | None:
    """Fuse the model's layers; ``None`` where they have another shape, or a trial does not give the model's numbers.

    Args:
        reorders: whether products use reordered copies of the weights (``fused_linear``).
    """
    backbone: Any = loaded.head.backbone
    if not (loaded.head.exact_split and _children(backbone) == BACKBONE and all(map(_has_shape, backbone.layers))):
        return None
    layers = FusedLayers(backbone, reorders)
    # One layer's products apart: what an adapter adds to them is small beside the rounding of all layers in bfloat16.
    if reorders and not all(product.agrees() for product in FusedLayer.of(backbone.layers[0]).products):
        return None
    with layers.prepared():
        return layers if agrees(loaded, layers.hidden) else None


def _sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return ``a b + c d``, rounded as often as the model does: after each step if the dtype is narrow."""
    return (a * b).addcmul_(c, d) if a.dtype == torch.float32 else a * b + c * d


def _has_shape(layer: Any) -> bool:
    """Return whether a layer consists of exactly the parts known here, with plain linear maps."""
    if _children(layer) != LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if _children(attention) != ATTENTION_PARTS or _children(mlp) != MLP_PARTS:
        return False
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    products = [q, k, v, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return all(map(is_linear_map, products)) and can_join([q, k, v]) and can_join([mlp.gate_proj, mlp.up_proj])


def _parts(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    products = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (*products, mlp.gate_proj, mlp.up_proj, mlp.down_proj, layer.input_layernorm, layer.post_attention_layernorm)


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
