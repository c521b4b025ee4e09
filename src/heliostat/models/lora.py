r"""Low-rank adapters by PEFT: ``W + (alpha / rank) B A`` in place of ``W``, and only ``A`` and ``B`` are trained.

Adapters sit inside the model, so sampling and training see the adapted weights; ``B`` starts at 0, so the first policy
is the model itself. What is saved is a plain model, merged, and the adapter beside it.

Left out: quantised bases, dropout (it is off everywhere here), and other kinds of adapters.

References: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heliostat.config import ConfigError, LoraSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
"""What PEFT calls an adapter that has no name."""


def add_adapters(model: PreTrainedModel, section: LoraSection, seed: int) -> None:
    """Put adapters on the model's linear layers, in place, and freeze everything else.

    **Limits**: before the first update the model's outputs are what they were, exactly.

    Raises:
        ConfigError: no layer has one of the names in ``lora.layers``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=list(section.layers) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, adapter_name=NAME)
        except ValueError as error:
            names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ConfigError(
                f"lora.layers = {list(section.layers)} names no layer of the model; its linear layers are: "
                f"{', '.join(names)}"
            ) from error


def is_adapted(model: nn.Module) -> bool:
    """Whether ``add_adapters`` has been here."""
    return hasattr(model, "peft_config")


def merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain model that computes the same: ``W + (alpha / rank) B A``, under the plain names.

    Args:
        weights: the adapted model's state, whole.
    """
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for prefix, layer in _adapted(model).items():
        a, b = (weights[f"{prefix}.lora_{side}.{NAME}.weight"].float() for side in "AB")
        change = layer.scaling[NAME] * (b @ a)
        base = weights[f"{prefix}.base_layer.weight"]
        plain[f"{prefix}.weight"] = (base.float() + (change.T if layer.fan_in_fan_out else change)).to(base.dtype)
    return plain


def save_adapter(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter alone, as PEFT reads it (``PeftModel.from_pretrained(base, folder)``)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config[NAME]  # type: ignore[index]
    config.save_pretrained(folder)
    own = {name: tensor for name, tensor in weights.items() if ".lora_" in name}
    stored = {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": t.contiguous() for name, t in own.items()}
    save_file(stored, folder / "adapter_model.safetensors")


def _adapted(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by name."""
    return {name: module for name, module in model.named_modules() if NAME in getattr(module, "lora_A", {})}
