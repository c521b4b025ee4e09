"""A run's model as folders that plain transformers and PEFT load, from any number of ranks.

Left out: what is in such a folder (``models.saving``, ``models.lora``).
"""

from __future__ import annotations

from pathlib import Path

from heliostat.models import LoadedModel, save_model
from heliostat.models.lora import is_adapted, save_adapter
from heliostat.storage import publishing
from heliostat.train.runtime import Runtime
from heliostat.train.sharding import whole_weights


def export(loaded: LoadedModel, runtime: Runtime, folder: Path, adapter: Path | None = None) -> None:
    """Save the model, adapters merged; of cut weights every rank gives its part, and the main one writes.

    Args:
        adapter: where adapters go on their own, if there are any.
    """
    weights = whole_weights(loaded.model)
    with runtime.together():
        if runtime.is_main:
            save_model(loaded, folder, weights)
            if adapter is not None and is_adapted(loaded.model):
                with publishing(adapter) as partial:
                    save_adapter(loaded.model, weights or loaded.model.state_dict(), partial)
