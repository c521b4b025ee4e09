"""A decoder's sizes, read from its Hugging Face configuration, and its weights counted from them.

Counting needs no weights and no torch, so that a trillion parameters can be planned for on a laptop. Tests hold the
counts equal to those of transformers' own modules.

Left out: families other than those in ``FAMILIES``; window and sparse attention, which counts as full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_text
from heliostat.cards import Card
from heliostat.config import ConfigError, nearest
from heliostat.scaling.hub_config import download_config, is_hub_id

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3", "kimi_k2")
"""Values of ``model_type`` whose weights are counted as transformers makes them."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward layers of which a token uses a few.

    Attributes:
        num, num_used, num_shared: there are, a token is sent to, every token uses besides.
        intermediate: width of one.
        num_dense_layers: layers at the bottom that have none.
    """

    num: int
    num_used: int
    num_shared: int
    intermediate: int
    num_dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention whose cache is one short vector a token (multi-head latent attention).

    Attributes:
        query_rank, cache_rank: of the two projections; a ``query_rank`` of 0 has none.
        rotary, plain, value: width of a head's rotated and other query entries, and of its values.
    """

    query_rank: int
    cache_rank: int
    rotary: int
    plain: int
    value: int


@dataclass(frozen=True, slots=True, repr=False)
class ModelShape(Card):
    """A decoder's sizes.

    Attributes:
        hidden, intermediate, head_size: widths.
        tied: embedding and output projection are one matrix.
        query_bias, query_norm: biases of queries, keys and values; a norm on each query and key head.
    """

    name: str
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool
    query_bias: bool = False
    query_norm: bool = False
    experts: Experts | None = None
    latent: Latent | None = None

    # -- weights ----------------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return self._outside + sum(self.layer_parameters(layer) for layer in range(self.num_layers))

    @property
    def num_active(self) -> int:
        """Weights that one token uses."""
        return self.num_parameters - self._unused

    @property
    def num_expert_parameters(self) -> int:
        """Weights of routed experts, which expert parallelism divides."""
        if self.experts is None:
            return 0
        one = 3 * self.hidden * self.experts.intermediate
        return one * self.experts.num * (self.num_layers - self.experts.num_dense_layers)

    def layer_parameters(self, layer: int) -> int:
        """Count the weights of one layer."""
        return self._attention + 2 * self.hidden + self._feed_forward(layer)

    @property
    def largest_layer(self) -> int:
        """Weights of the largest layer, which sharded training gathers at once."""
        return max(self.layer_parameters(layer) for layer in range(self.num_layers))

    @property
    def _outside(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def _attention(self) -> int:
        if self.latent is not None:
            one, head = self.latent, self.latent.rotary + self.latent.plain
            rank = one.query_rank
            queries = self.hidden * self.num_heads * head
            if rank:
                queries = self.hidden * rank + rank + rank * self.num_heads * head
            cache = self.hidden * (one.cache_rank + one.rotary) + one.cache_rank
            keys_values = one.cache_rank * self.num_heads * (one.plain + one.value)
            return queries + cache + keys_values + self.num_heads * one.value * self.hidden
        width, kv_width = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        biases = width + 2 * kv_width if self.query_bias else 0
        norms = 2 * self.head_size if self.query_norm else 0
        return self.hidden * (2 * width + 2 * kv_width) + biases + norms

    def _feed_forward(self, layer: int) -> int:
        experts = self.experts
        if experts is None or layer < experts.num_dense_layers:
            return 3 * self.hidden * self.intermediate
        return 3 * self.hidden * experts.intermediate * (experts.num + experts.num_shared) + self.hidden * experts.num

    @property
    def _unused(self) -> int:
        if self.experts is None:
            return 0
        return self.num_expert_parameters * (self.experts.num - self.experts.num_used) // self.experts.num

    # -- work and cache ---------------------------------------------------------------------------------------------

    def forward_flops(self, num_tokens: float, num_context: float, num_logits: float | None = None) -> float:
        """Count the FLOPs of a forward, ``2 N_matmul T + L 2 H (d_qk + d_v) c T + 2 N_head T_logits``.

        Args:
            num_context: positions that a token attends to, averaged over tokens.
            num_logits: tokens that get logits; default all.

        **Limits**: ``models.forward_flops`` of the loaded model (which counts modules instead of sizes), for models
        without latent attention.
        """
        vectors = (2 * self.num_layers + 1) * self.hidden  # norms multiply no matrix
        head = self.vocab * self.hidden
        matrices = self.num_active - vectors - self._small_vectors - head * (1 if self.tied else 2)
        logits = num_tokens if num_logits is None else num_logits
        attention = 2.0 * self.num_layers * self.num_heads * self._pair_width * num_context
        return (2.0 * matrices + attention) * num_tokens + 2.0 * head * logits

    @property
    def _small_vectors(self) -> int:
        """Biases and the norms inside attention."""
        width = self.num_heads * self.head_size + 2 * self.num_kv_heads * self.head_size
        each = (width if self.query_bias else 0) + (2 * self.head_size if self.query_norm else 0)
        if self.latent is not None:
            each = self.latent.query_rank + self.latent.cache_rank
        return each * self.num_layers

    @property
    def _pair_width(self) -> int:
        """Entries of a head that meet in one pair of positions: query with key, and weight with value."""
        return 2 * self.head_size if self.latent is None else self.latent.rotary + self.latent.plain + self.latent.value

    @property
    def cache_entries(self) -> int:
        """Entries of the key-value cache for each token."""
        if self.latent is not None:
            return self.num_layers * (self.latent.cache_rank + self.latent.rotary)
        return 2 * self.num_layers * self.num_kv_heads * self.head_size

    def touched_parameters(self, num_tokens: float) -> float:
        """Count the weights read in a forward over ``num_tokens`` tokens that choose experts evenly and independently.

        **Limits**: one token, ``num_active``; many tokens, or no experts, ``num_parameters``.
        """
        if self.experts is None:
            return float(self.num_parameters)
        share: float = 1 - (1 - self.experts.num_used / self.experts.num) ** num_tokens
        return self.num_parameters - self.num_expert_parameters * (1 - share)


def read_shape(name_or_path: PathArg, catalog: Mapping[str, ModelShape]) -> ModelShape:
    """Read a shape from ``catalog`` by name, from a model folder, from a ``config.json`` or by its hub id.

    A name that exists as a path is never looked up on the hub.

    Raises:
        ConfigError: there is none, or its family is not one of ``FAMILIES``.
    """
    name_or_path = as_text(name_or_path)
    if name_or_path in catalog:
        return catalog[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ConfigError(f"the folder '{name_or_path}' holds no config.json; give one in Hugging Face format")
    elif not path.exists() and is_hub_id(name_or_path):
        path = download_config(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"unknown model '{name_or_path}'{nearest(name_or_path, catalog)}; give a model folder, its config.json, a "
            f"hub id like Qwen/Qwen2.5-7B, or one of: {', '.join(catalog)}"
        )
    try:
        return shape_of(json.loads(path.read_text(encoding="utf-8")), name_or_path)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not the configuration of a language model ({error!r})") from error


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """Build the shape that a Hugging Face configuration describes.

    Raises:
        ConfigError: the family is unknown here.
        KeyError: a size is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"{name} is a '{family}' model; weights are counted for: {', '.join(FAMILIES)}")
    heads = config["num_attention_heads"]
    return ModelShape(
        name=name,
        hidden=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        query_bias=family == "qwen2",
        query_norm=family in ("qwen3", "qwen3_moe"),
        experts=_experts(config),
        latent=_latent(config),
    )


def _experts(config: Mapping[str, Any]) -> Experts | None:
    num = config.get("n_routed_experts") or config.get("num_experts")
    if not num:
        return None
    return Experts(
        num=num,
        num_used=config["num_experts_per_tok"],
        num_shared=config.get("n_shared_experts") or 0,
        intermediate=config["moe_intermediate_size"],
        num_dense_layers=config.get("first_k_dense_replace") or 0,
    )


def _latent(config: Mapping[str, Any]) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        query_rank=config.get("q_lora_rank") or 0,
        cache_rank=config["kv_lora_rank"],
        rotary=config["qk_rope_head_dim"],
        plain=config["qk_nope_head_dim"],
        value=config["v_head_dim"],
    )
