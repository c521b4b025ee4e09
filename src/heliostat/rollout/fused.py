"""A decoding pass through layers of Llama's shape in few operations: what a pass needs, and nothing else.

    x -> norm -> [q k v] -> rotate -> attend -> o, + x -> norm -> [gate up] -> silu, product -> down, + x    each layer

Products of few rows run faster on small weights that lie input by output, and those of one input are one product. So
small weights exist a second time, laid out like that, copied from the model's own before every batch of prompts. Large
ones gain little or lose (``MAX_COPIED_BYTES``) and stay where they are.

Left out: layers of any other shape, adapters among them: the model runs those itself. Embedding, rotary angles, norms
and head are the model's own everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from heliostat.models import LoadedModel
from heliostat.rollout.shared import SharedRows, agrees

BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


MAX_COPIED_BYTES = 2**21
"""Larger products gain little on a copy, and some lose (``docs/studies/speed.md``); smaller ones fit a core's cache."""


class Product:
    """Several linear maps of one input as one, ``x [W1 W2 ..] + [b1 b2 ..]``."""

    def __init__(self, *linears: nn.Linear) -> None:
        self._linears = linears
        size = sum(linear.out_features * linear.in_features * linear.weight.element_size() for linear in linears)
        self._copied = size <= MAX_COPIED_BYTES
        self._weight = torch.empty(0)
        self._bias: Tensor | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights as they are now."""
        if not self._copied:
            return
        widths, weight = [linear.out_features for linear in self._linears], self._linears[0].weight
        if not self._weight.numel() or self._weight.dtype != weight.dtype:  # gathered weights may have another type
            self._weight = weight.new_empty(self._linears[0].in_features, sum(widths))
        for part, linear in zip(torch.split(self._weight, widths, dim=1), self._linears, strict=True):
            part.copy_(linear.weight.T)
        biases = [linear.bias for linear in self._linears if linear.bias is not None]
        self._bias = torch.cat([*biases]) if biases else None

    def __call__(self, x: Float[Tensor, "row input"]) -> Float[Tensor, "row output"]:
        if not self._copied:
            return torch.cat([linear(x) for linear in self._linears], dim=-1)
        return x @ self._weight if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def onto(self, residual: Float[Tensor, "row output"], x: Float[Tensor, "row input"]) -> Tensor:
        """``residual + self(x)``."""
        if not self._copied or self._bias is not None:
            return residual + self(x)
        return torch.addmm(residual, x, self._weight)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer: its four products, and the model's own norms."""

    qkv: Product
    o: Product
    gate_up: Product
    down: Product
    norms: tuple[nn.Module, nn.Module]
    parts: tuple[nn.Module, ...]

    @classmethod
    def of(cls, layer: Any) -> FusedLayer:
        """A transformers layer's."""
        q, k, v, o, gate, up, down, *norms = parts = _parts(layer)
        products = Product(q, k, v), Product(o), Product(gate, up), Product(down)
        return cls(*products, (norms[0], norms[1]), parts)

    def is_of(self, layer: Any) -> bool:
        """Whether the layer still consists of the parts that were taken over."""
        return all(mine is own for mine, own in zip(self.parts, _parts(layer), strict=True))


class FusedLayers:
    """A model's backbone, for rows that are fed one token each."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._layers = [FusedLayer.of(layer) for layer in backbone.layers]
        attention = backbone.layers[0].self_attn
        self._width, self._scaling = attention.head_dim, attention.scaling
        self._num_heads = attention.q_proj.out_features // self._width
        self._num_shared = attention.k_proj.out_features // self._width
        self._activation = backbone.layers[0].mlp.act_fn

    def refresh(self) -> None:
        """Take over the model's weights as they are now.

        Raises:
            RuntimeError: layers have been replaced since, by adapters for example.
        """
        if not all(mine.is_of(layer) for mine, layer in zip(self._layers, self._backbone.layers, strict=True)):
            raise RuntimeError(
                "the model's layers were replaced after its rollout engine was built; add adapters first, then build "
                "the engine"
            )
        for layer in self._layers:
            for product in (layer.qkv, layer.o, layer.gate_up, layer.down):
                product.refresh()

    def hidden(self, rows: SharedRows, token: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token; the hidden states behind them."""
        rows.hide_padding()
        x = self._backbone.embed_tokens(token)
        cos, sin = (each.squeeze(1)[:, None] for each in self._backbone.rotary_emb(x, rows.positions))
        half = self._width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        x = x.squeeze(1)
        num_rows, num_rotated = len(x), self._num_heads + self._num_shared
        for index, layer in enumerate(self._layers):
            states = layer.qkv(layer.norms[0](x)).view(num_rows, -1, self._width)
            rotated = states[:, :num_rotated]
            rotated = (rotated * cos).addcmul_(rotated.roll(half, dims=-1), sin)
            query = (rotated[:, : self._num_heads] * self._scaling).view(num_rows, self._num_shared, -1, self._width)
            key, value = rotated[:, self._num_heads :, None], states[:, num_rotated:, None]
            x = layer.o.onto(x, rows.attend(index, query, key, value).view(num_rows, -1))
            gate, up = layer.gate_up(layer.norms[1](x)).chunk(2, dim=-1)
            x = layer.down.onto(x, self._activation(gate).mul_(up))
        last: Tensor = self._backbone.norm(x)
        return last.unsqueeze(1)


def fused_layers(loaded: LoadedModel) -> FusedLayers | None:
    """The model's layers fused, where they have the shape and then, tried, give the model's own numbers."""
    backbone: Any = loaded.head.backbone
    if not (loaded.head.exact_split and _children(backbone) == BACKBONE and all(map(_has_shape, backbone.layers))):
        return None
    layers = FusedLayers(backbone)
    layers.refresh()
    return layers if agrees(loaded, layers.hidden) else None


def _has_shape(layer: Any) -> bool:
    """Whether a layer consists of exactly the parts known here, its products plain."""
    if _children(layer) != LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if _children(attention) != ATTENTION_PARTS or _children(mlp) != MLP_PARTS:
        return False
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    products = [q, k, v, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    alike = len({part.bias is None for part in (q, k, v)}) == 1 and (mlp.gate_proj.bias is None) == (
        mlp.up_proj.bias is None
    )
    return alike and all(type(product) is nn.Linear for product in products)


def _parts(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    products = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (*products, mlp.gate_proj, mlp.up_proj, mlp.down_proj, layer.input_layernorm, layer.post_attention_layernorm)


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
