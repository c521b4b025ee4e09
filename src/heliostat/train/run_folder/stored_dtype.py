"""The dtype of a run's weights: fixed when the run begins, on whatever machine it is continued.

``model.dtype = "auto"`` depends on the device, but a checkpoint does not. Bfloat16 weights with their float32 copies
cannot continue bit for bit as float32 weights, nor the other way round. A saved model has its reported results in the
dtype that it was trained in, so it is evaluated in that dtype.

Left out: the compute dtype of sharded weights, which a continued run may change (``distributed.compute_dtype``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from heliostat.config import Recipe
from heliostat.outputs import MARKER

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Names of dtypes in recipes."""

_STORED = {"F32": torch.float32, "BF16": torch.bfloat16}


def begun_in(recipe: Recipe, dtype: torch.dtype | None) -> Recipe:
    """Return the recipe of a continued run, with the dtype of its checkpoint where the recipe says ``auto``.

    Args:
        dtype: of the checkpoint (``stored_dtype``); ``None`` without one.
    """
    if recipe.model.dtype != "auto" or dtype not in NAMES:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": NAMES[dtype]})})


def as_saved(recipe: Recipe) -> Recipe:
    """Return the recipe with the dtype of its model's weights, if the recipe says ``auto`` and a run saved the model.

    **Limits**: a saved model that was moved out of its run folder is loaded like any other.
    """
    folder = Path(recipe.model.path).expanduser()
    if recipe.model.dtype != "auto" or not (folder.parent / MARKER).is_file() or not folder.is_dir():
        return recipe
    return begun_in(recipe, stored_dtype(folder))


def stored_dtype(checkpoint: Path) -> torch.dtype | None:
    """Return the dtype of the weights in a checkpoint's or saved model's folder.

    **Limits**: a folder that cannot be read: ``None``; loading its weights later raises the reason.
    """
    try:
        types = _of_shards(checkpoint) if (checkpoint / "shards").is_dir() else _of_file(checkpoint)
    except Exception:
        return None
    return _shortest(types)


def _of_file(checkpoint: Path) -> set[torch.dtype]:
    named: set[str] = set()
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            named |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # it is no mapping
    return {_STORED[name] for name in named if name in _STORED}


def _of_shards(checkpoint: Path) -> set[torch.dtype]:
    stored = FileSystemReader(checkpoint / "shards").read_metadata().state_dict_metadata
    weights = [entry for key, entry in stored.items() if key.startswith("model.")]
    return {entry.properties.dtype for entry in weights if isinstance(entry, TensorStorageMetadata)}


def trained_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model's trainable weights; ``None`` without any."""
    return _shortest({parameter.dtype for parameter in model.parameters() if parameter.requires_grad})


def _shortest(types: set[torch.dtype]) -> torch.dtype | None:
    """Return the dtype of lowest precision, which a recipe would name.

    Some architectures keep a few weights or buffers of a bfloat16 model in float32.
    """
    return min(types, key=lambda dtype: dtype.itemsize, default=None)
