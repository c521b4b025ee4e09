"""The sync of an adapter alone: kilobytes to megabytes in place of the model, under a new name each time.

    save adapter --> unload the one before --> load under a new name --> mark

The server applies the adapter to its own base weights, which are never changed. Whether that gives the trainer's
log-probabilities is decided by a rehearsal, like every other doubt.

Left out: adapters with modules that are trained whole (servers refuse them), and several adapters at once.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heliostat.models import LoadedModel
from heliostat.models.lora import save_adapter
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.dialect import Dialect
from heliostat.rollout.server.holder import Marks
from heliostat.rollout.server.model_tensors import tensors_of


@dataclass(slots=True)
class AdapterSlot:
    """The adapter that a server applies for one run.

    Attributes:
        name: of the adapter on the server; empty: there is none, and requests go to the model itself.
        folder: that holds it.
    """

    name: str = ""
    folder: Path | None = None


def send_adapter(
    slot: AdapterSlot, loaded: LoadedModel, server: Server, dialect: Dialect, sync_dir: Path, marks: Marks
) -> None:
    """Put the model's current adapter on the server in place of the one before, under a name of its own.

    Raises:
        ServerError: the server has no adapters that can be loaded while it runs, or refuses this one.
    """
    mark = marks.renew()
    name = mark.replace("/", "-")
    folder = (sync_dir / name).resolve()
    save_adapter(loaded.model, tensors_of(loaded.model), folder)
    withdraw_adapter(slot, server, dialect)
    slot.folder = folder
    try:
        dialect.load_adapter(server, name, folder)
    except ServerError:
        shutil.rmtree(folder)
        raise
    slot.name = name
    dialect.mark_weights(server, mark)


def withdraw_adapter(slot: AdapterSlot, server: Server, dialect: Dialect) -> None:
    """Unload the adapter, if there is one, and remove its folder; one that the server has lost is no error."""
    if slot.name:
        with suppress(ServerError):
            dialect.unload_adapter(server, slot.name)
        if slot.folder is not None:
            shutil.rmtree(slot.folder, ignore_errors=True)
    slot.name, slot.folder = "", None
