"""Preparation of a run's folder: remove leftovers, refuse obstacles, and detach files that share storage with a copy.

Left out: ownership of the folder (``outputs``), and the run's own files (``folder``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from heliostat.config import ConfigError
from heliostat.storage import publish_file, recover_folder, remove_folder
from heliostat.storage.files import PARTIAL

MODELS = ("model", "adapter", "reference")
"""Folders of weights."""

_LEFTOVERS = (*(ending.format(name) for name in MODELS for ending in (".{}-????????", ".old-{}-????????")),)
"""Names of folders that killed exports of earlier versions left."""


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Recover models that a killed process was writing, and remove its other leftovers.

    Args:
        names: files that a run publishes; other ``.partial`` files stay, since no run of ours wrote them.
    """
    for name in MODELS:
        recover_folder(folder / name)
    for pattern in (*_LEFTOVERS, ".trial-????????"):
        for leftover in folder.glob(pattern):
            remove_folder(leftover)
    for name in names:
        leftover = folder / f"{name}{PARTIAL}"
        if leftover.is_file() or leftover.is_symlink():
            leftover.unlink()


def check_places(folder: Path) -> None:
    """Refuse obstacles to the run's folders now, rather than after hours of training.

    Raises:
        ConfigError: a link, a file, or a folder without a model is in the place of one of them.
    """
    for name in ("checkpoints", *MODELS):
        place = folder / name
        if place.is_symlink():
            raise ConfigError(f"{place} is a link; use --run to put the whole run where the link points")
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is not a folder, but the run keeps its {name} there; move it away")
    for place in (folder / name for name in MODELS):
        held = sorted(entry.name for entry in place.iterdir()) if place.exists() else []
        if held and not {"config.json", "adapter_config.json"} & set(held):
            raise ConfigError(
                f"{place} holds no model but '{held[0]}', and the run saves a model there; move its contents away"
            )


def keep_apart(logs: Iterable[Path]) -> None:
    """Replace files that are hard links by copies, since the folder may be a copy made with ``cp -al``."""
    for log in logs:
        if log.is_file() and not log.is_symlink() and log.stat().st_nlink > 1:
            publish_file(log, log.read_bytes())
