"""Resolve the names in ``[lora]`` to parts of a model, before the model is changed.

A name means every module or parameter whose path ends in it. Linear layers and embeddings get an adapter as modules;
experts whose weights are one tensor of three dimensions get it as parameters.

Left out: the adapters themselves (``models.lora``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from heliostat.config import ConfigError, LoraSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Their fused kernels read these weights past the layer, so an adapter there would be skipped (PEFT refuses it).
BYPASSED = {name: ["out_proj", "conv1d"] for name in ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")}


def split_targets(model: PreTrainedModel, names: Sequence[str], whole: Sequence[str]) -> dict[str, Any]:
    """Return the part of PEFT's configuration that selects layers.

    Args:
        whole: paths of the modules that are to have none, nor anything inside them.

    Raises:
        ConfigError: a name fits a module that can have no adapter, or is none.
    """
    _refuse_nameless("layers", names)
    if not names:
        inside = [path for each in whole for path, _ in model.get_submodule(each).named_modules(prefix=each)]
        left_out = [*BYPASSED.get(model.config.model_type, ()), *inside]
        return {"target_modules": "all-linear", "exclude_modules": left_out or None}
    parameters = [name for name in names if not _modules(model, name) and _has_weight(model, name)]
    for name in names:
        for path, module in _modules(model, name):
            if not isinstance(module, _adaptable()) and not _is_router(module):
                raise ConfigError(
                    f"lora.layers names '{name}', and {path} is a {type(module).__name__}: adapters go on linear "
                    f"layers and embeddings; {_there_are(model)}"
                )
    modules = {"target_modules": [name for name in names if name not in parameters]}
    return modules | ({"target_parameters": parameters} if parameters else {})


def unmatched(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names that match nothing in the model; PEFT may still map one from an earlier form of the experts."""
    return [name for name in names if not _modules(model, name) and not _has_weight(model, name)]


def no_such_layer(model: nn.Module, names: Sequence[str], wrong: str) -> ConfigError:
    """Return the error message for a name that matches no layer."""
    return ConfigError(
        f"lora.layers = {list(names)}: '{wrong}' names no layer of the model; {_there_are(model)}; names are the ends "
        "of paths, not patterns, and an empty list means every linear layer but the head"
    )


def trained_whole(model: PreTrainedModel, section: LoraSection) -> list[str]:
    """Return the paths of the modules that ``lora.modules_to_save`` names, and of those that share a weight with one.

    Raises:
        ConfigError: a name fits no module with weights, or one that is to have an adapter as well.
    """
    _refuse_nameless("modules_to_save", section.modules_to_save)
    chosen: list[str] = []
    for name in section.modules_to_save:
        found = [path for path, module in _modules(model, name) if any(True for _ in module.parameters())]
        if not found:
            raise ConfigError(f"lora.modules_to_save names no module of the model that has weights: '{name}'")
        for path in found:
            inside = [each for each, _ in model.get_submodule(path).named_modules(prefix=path)]
            if any(_ends(each, layer) for each in inside for layer in section.layers):
                raise ConfigError(
                    f"'{path}' is named by lora.modules_to_save and by lora.layers; train it whole or by an adapter"
                )
        chosen += found
    weights = {id(parameter) for path in chosen for parameter in model.get_submodule(path).parameters()}
    tied = [
        path
        for path, module in model.named_modules()
        if any(id(parameter) in weights for parameter in module.parameters(recurse=False))
    ]
    outside = [path for path in tied if not any(path == one or path.startswith(f"{one}.") for one in chosen)]
    return sorted({*chosen, *outside})


def _refuse_nameless(key: str, names: Sequence[str]) -> None:
    """Refuse an empty name, which would match the model itself."""
    if not all(name.strip() for name in names):
        raise ConfigError(f"lora.{key} = {list(names)}: a name is empty; give names of modules, or an empty list")


def _adaptable() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, nn.Embedding, nn.Conv1d, Conv1D


def _is_router(module: nn.Module) -> bool:
    """Return whether a module has one matrix of its own, which PEFT adapts as a parameter in families it knows."""
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2


def _modules(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.named_modules() if _ends(path, name)]


def _has_weight(model: nn.Module, name: str) -> bool:
    return any(_ends(path, name) and parameter.ndim in (2, 3) for path, parameter in model.named_parameters())


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _there_are(model: nn.Module) -> str:
    """List the names that would match, as text."""
    layers = {
        path.rpartition(".")[2]: module for path, module in model.named_modules() if isinstance(module, _adaptable())
    }
    embeddings = {name for name, module in layers.items() if isinstance(module, nn.Embedding)}
    linear = layers.keys() - embeddings
    experts = {path.rpartition(".")[2] for path, parameter in model.named_parameters() if parameter.ndim == 3}
    return f"its linear layers are: {_listed(linear)}; its embeddings: {_listed(embeddings)}" + (
        f"; weights of experts: {_listed(experts)}" if experts else ""
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) - {"base_layer", "default"}))
