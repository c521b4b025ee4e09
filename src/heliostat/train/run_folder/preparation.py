"""Preparation of a run's folder for a session: remove leftovers, name obstacles, part hard-linked files.

Left out: ownership of the folder (``outputs``), and the files that a run writes there (``folder``).
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
"""Names of leftovers of killed exports of earlier versions."""


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Recover models that a killed process left half-written, and remove its other leftovers.

    Args:
        names: the files that a run publishes; other files that end in ``.partial`` are kept.
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
    """Check that a run's folders can be created later, so that obstacles are reported before hours of training.

    Raises:
        ConfigError: a link, a file, or a folder without a model has the name of one of them.
    """
    for name in ("checkpoints", *MODELS):
        place = folder / name
        if place.is_symlink():
            raise ConfigError(f"{place} is a link; use --run to put the whole run where the link points")
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is not a folder, but the run keeps its {name} there; move it away")
    for place in (folder / name for name in MODELS):
        present = sorted(entry.name for entry in place.iterdir()) if place.exists() else []
        if present and not {"config.json", "adapter_config.json"} & set(present):
            raise ConfigError(
                f"{place} holds no model but '{present[0]}', and the run saves a model there; move its contents away"
            )


def keep_apart(logs: Iterable[Path]) -> None:
    """Replace hard-linked logs by copies of their own, since the folder may be a copy by hard links (``cp -al``)."""
    for log in logs:
        if log.is_file() and not log.is_symlink() and log.stat().st_nlink > 1:
            publish_file(log, log.read_bytes())
