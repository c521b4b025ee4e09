"""Preparation of a run's folder for a session: remove leftovers, name obstacles, part hard-linked files.

Left out: whose the folder is (``outputs``), and what the run writes there (``folder``).
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
"""What killed exports of earlier versions are called."""


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Put right what a killed process left of writing models, and remove its other leftovers.

    Args:
        names: the files that a run publishes; other files that end in ``.partial`` are not ours.
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
    """Refuse at once what would be in the way of a run's folders only after hours of training.

    Raises:
        ConfigError: a link, a file, or something that is no model stands where one of them goes.
    """
    for name in ("checkpoints", *MODELS):
        place = folder / name
        if place.is_symlink():
            raise ConfigError(f"{place} is a link; keep the whole run where it points to, with --run")
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is no folder, and the run keeps its {name} there; move it away")
    for place in (folder / name for name in MODELS):
        held = sorted(entry.name for entry in place.iterdir()) if place.exists() else []
        if held and not {"config.json", "adapter_config.json"} & set(held):
            raise ConfigError(
                f"{place} holds no model ('{held[0]}'), and the run saves one there; move what is in it away"
            )


def keep_apart(logs: Iterable[Path]) -> None:
    """Make files that have another name elsewhere this folder's own: it may be a copy by hard links (``cp -al``)."""
    for log in logs:
        if log.is_file() and not log.is_symlink() and log.stat().st_nlink > 1:
            publish_file(log, log.read_bytes())
