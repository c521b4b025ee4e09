"""The dtype of a run's weights: decided when the run begins, and kept on every machine that continues it.

``model.dtype = "auto"`` depends on the device, and a checkpoint does not: bfloat16 weights with their float32 copies
cannot continue as float32 weights, bit for bit, nor the other way round. A model in a run's folder reproduces the
reported results in the dtype that it was trained in, so it is evaluated in that dtype.

Left out: the compute dtype of sharded weights, which a continued run may change (``distributed``).
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
from heliostat.run_models import model_of

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Names of dtypes in a recipe."""

_STORED = {"F32": torch.float32, "BF16": torch.bfloat16}


def begun_in(recipe: Recipe, dtype: torch.dtype | None) -> Recipe:
    """Set the dtype that a continued run began in, where its recipe leaves that open.

    Args:
        dtype: the dtype of its checkpoint (``stored_dtype``); ``None`` without a checkpoint.
    """
    if recipe.model.dtype != "auto" or dtype not in NAMES:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": NAMES[dtype]})})


def as_saved(recipe: Recipe) -> Recipe:
    """Set the dtype of the model's weights, where that is a run's saved model and the recipe leaves the dtype open.

    **Limits**: a saved model that was moved out of its run is loaded like any other.
    """
    folder = Path(model_of(recipe.model.path)).expanduser()
    if recipe.model.dtype != "auto" or not (folder.parent / MARKER).is_file() or not folder.is_dir():
        return recipe
    return begun_in(recipe, stored_dtype(folder))


def stored_dtype(checkpoint: Path) -> torch.dtype | None:
    """Return the dtype of the weights in a checkpoint's folder or a saved model's; ``None`` where it cannot be told.

    **Limits**: ``None`` for a folder that cannot be read; loading its weights raises the error.
    """
    try:
        dtypes = _of_shards(checkpoint) if (checkpoint / "shards").is_dir() else _of_file(checkpoint)
    except Exception:
        return None
    return _narrowest(dtypes)


def _of_file(checkpoint: Path) -> set[torch.dtype]:
    named: set[str] = set()
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            named |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # not a mapping
    return {_STORED[name] for name in named if name in _STORED}


def _of_shards(checkpoint: Path) -> set[torch.dtype]:
    stored = FileSystemReader(checkpoint / "shards").read_metadata().state_dict_metadata
    weights = [entry for key, entry in stored.items() if key.startswith("model.")]
    return {entry.properties.dtype for entry in weights if isinstance(entry, TensorStorageMetadata)}


def trained_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model's trainable weights; ``None`` where it has none."""
    return _narrowest({parameter.dtype for parameter in model.parameters() if parameter.requires_grad})


def _narrowest(dtypes: set[torch.dtype]) -> torch.dtype | None:
    """Return the narrowest dtype: some architectures keep a few weights or buffers of a bfloat16 model in float32."""
    return min(dtypes, key=lambda dtype: dtype.itemsize, default=None)
