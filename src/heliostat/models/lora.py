r"""Low-rank adapters by PEFT: ``W + (alpha / rank) B A`` in place of ``W``, and only ``A`` and ``B`` are trained.

Adapters sit inside the model, so sampling and training see the adapted weights; one of the two factors starts at 0, so
the first policy is the model itself. A save holds the merged plain model, and the adapter alone next to it.

Left out: choosing layers (``models.lora_targets``), quantised bases, dropout (it is always off), and
other kinds of adapters.

References: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heliostat.config import ConfigError, LoraSection
from heliostat.models.architecture_probes import probe_ids, probing
from heliostat.models.lora_targets import no_such_layer, split_targets, trained_whole, unmatched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
"""What PEFT calls an adapter that has no name."""

STIR = 0.3
"""Size of a perturbed adapter's change, as a share of its weight's."""


def add_adapters(model: PreTrainedModel, section: LoraSection, seed: int) -> None:
    """Add adapters to the model's layers, in place, and freeze everything else but ``lora.modules_to_save``.

    **Limits**: before the first update the model's outputs are unchanged, exactly.

    Raises:
        ConfigError: a name in ``lora.layers`` or ``lora.modules_to_save`` fits nothing that can be trained so.
    """
    from peft import LoraConfig, inject_adapter_in_model

    whole = trained_whole(model, section)
    targets = split_targets(model, section.layers, whole)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        **targets,
    )
    unknown = unmatched(model, section.layers)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # saving unties them
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, adapter_name=NAME)
        except ValueError as error:
            if unknown:
                raise no_such_layer(model, section.layers, unknown[0]) from error
            if whole and not section.layers:
                raise ConfigError(
                    f"lora.modules_to_save = {list(section.modules_to_save)} leaves no layer for an adapter; name "
                    "fewer modules, or train the whole model with lora.rank = 0"
                ) from error
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ConfigError(f"lora.layers = {list(section.layers)} does not suit this model: {reason}") from error
    for name in unknown:  # PEFT removes names it translated, and ignores names it did not find
        if name in (config.target_modules or ()):
            raise no_such_layer(model, section.layers, name)
    _leave_out_skipped(model, config, section)
    for name in whole:  # in place: PEFT trains a copy, which unties tied weights
        model.get_submodule(name).requires_grad_(True)
    config.modules_to_save = whole or None


def _leave_out_skipped(model: PreTrainedModel, config: Any, section: LoraSection) -> None:
    """Remove adapters from layers that the model's forward bypasses by reading their weights itself.

    Found by a test, not by a list: logits do not depend on their factors. One layer of a name that is reached is
    enough, since a few tokens do not visit every expert.
    """
    factors = [(path, factor) for path, layer in _adapted(model).items() for factor in _own(layer).values()]
    with probing(model), torch.enable_grad():
        logits = model(input_ids=probe_ids(model), use_cache=False).logits
        gradients = torch.autograd.grad(logits.float().sum(), [each for _, each in factors], allow_unused=True)
    leaf = {path: plain_name(path).rpartition(".")[2] for path, _ in factors}
    reached = {leaf[path] for (path, _), gradient in zip(factors, gradients, strict=True) if gradient is not None}
    skipped = sorted(set(leaf.values()) - reached)
    if skipped and section.layers:
        raise ConfigError(
            f"lora.layers: an adapter on '{skipped[0]}' would never be trained, since {type(model).__name__} reads "
            "that weight without calling the layer; leave it out"
        )
    for path, name in leaf.items():
        if name in skipped:
            model.set_submodule(path, model.get_submodule(path).get_base_layer())  # type: ignore[operator]
    config.exclude_modules = [*(config.exclude_modules or ()), *skipped] or None


def is_adapted(model: nn.Module) -> bool:
    """Return whether the model has adapters."""
    return hasattr(model, "peft_config")


def plain_name(name: str) -> str:
    """Return the name that a weight or module of an adapted model has in the model without adapters."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the equivalent plain model, ``W + (alpha / rank) B A``, under the plain names.

    Sums are taken in float32 and rounded once, to the type of ``W``.

    Args:
        weights: the adapted model's state, whole.

    Raises:
        ValueError: an adapter was found that belongs to no layer.
    """
    plain = unadapted(weights)
    lost = {name for name in weights if ".lora_" in name}
    for prefix, layer in _adapted(model).items():
        name = f"{plain_name(prefix)}.{_parameter_name(layer)}"
        own = {key: tensor for key, tensor in weights.items() if key.startswith(f"{prefix}.lora_")}
        lost -= own.keys()
        change = _change(layer, {key.removeprefix(f"{prefix}."): tensor.float() for key, tensor in own.items()})
        base = plain[name]
        plain[name] = (base.float() + change.to(base.device)).to(base.dtype)
    if lost:
        raise ValueError(f"{len(lost)} adapter weights belong to no layer that can be merged (first: {min(lost)})")
    return plain


def unadapted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights below adapters, under the plain model's names."""
    return {plain_name(name): tensor for name, tensor in weights.items() if ".lora_" not in name}


def save_adapter(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Save the adapter alone, as PEFT reads it (``PeftModel.from_pretrained(base, folder)``).

    Raises:
        ValueError: the folder holds a whole model, which would then be read with this adapter on top.
    """
    from safetensors.torch import save_file

    if (folder / "config.json").exists():
        raise ValueError(f"will not put an adapter into '{folder}': it holds a whole model; give a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config[NAME]  # type: ignore[index]
    config.save_pretrained(folder)
    whole = tuple(f"{name}." for name in config.modules_to_save or ())
    stored = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            name = name.replace(f".{NAME}.", ".").removesuffix(f".{NAME}")
        elif not name.startswith(whole):
            continue
        stored[f"base_model.model.{name}"] = tensor.detach().clone().contiguous()  # tied weights are stored twice
    save_file(stored, folder / "adapter_model.safetensors")


@contextmanager
def perturbed_adapters(model: nn.Module, seed: int) -> Iterator[None]:
    """Perturb every adapter inside the block, so that each changes the output; restored bit for bit afterwards.

    A fresh adapter changes nothing, so losing it would not show. Of the two factors the one that is 0 is filled with
    normal numbers, such that ``|change| = STIR |W|`` in expectation. Cut weights are filled part by part.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for layer in _adapted(model).values():
            base = held(getattr(layer.get_base_layer(), _parameter_name(layer)))
            factors = [held(parameter) for name, parameter in _own(layer).items()]
            for factor in factors:
                if factor.any():
                    continue
                kept.append((factor, factor.clone()))
                other = max((_size(each) for each in factors if each is not factor), default=0.0) or 1.0
                size = STIR * (_size(base) or 1.0) / (layer.scaling[NAME] * math.sqrt(layer.r[NAME]) * other)
                generator = generators.setdefault(factor.device, torch.Generator(factor.device).manual_seed(seed))
                factor.normal_(0.0, size, generator=generator)
    try:
        yield
    finally:
        with torch.no_grad():
            for factor, old in kept:
                factor.copy_(old)


def held(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that may be sharded; shares its memory."""
    part: Tensor = getattr(tensor.detach(), "_local_tensor", tensor.detach())
    return part


def _size(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt()) if tensor.numel() else 0.0


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's layers by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if NAME in getattr(module, "lora_A", {}) or NAME in getattr(module, "lora_embedding_A", {})
    }


def _parameter_name(layer: Any) -> str:
    """Return the parameter of the base layer that an adapter changes: of a linear layer, an embedding, or experts."""
    return str(getattr(layer, "parameter_name", "weight"))


def _own(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in layer.named_parameters() if name.startswith("lora_")}


class _Change(nn.Module):
    """The change that an adapter adds to its weight, by PEFT's formula, as a module with exchangeable parameters."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        """Compute the change, in the shape of the weight."""
        change: Tensor = self.layer.get_delta_weight(NAME)
        return change


def _change(layer: Any, factors: Mapping[str, Tensor]) -> Tensor:
    from torch.func import functional_call

    with torch.no_grad():
        change: Tensor = functional_call(_Change(layer), {f"layer.{key}": each for key, each in factors.items()}, ())
    return change
