"""Old names of settings: each is accepted for one minor version, with a one-line notice that gives the new name.

Left out: keys of named things, like those of an objective, which are checked by the package that declares them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from heliostat.config.errors import ConfigError
from heliostat.printed import say


class Renamed(NamedTuple):
    """The new dotted name of a setting, and the first version that no longer accepts the old one."""

    name: str
    removed_in: str


RENAMED: Mapping[str, Renamed] = {
    "prefix.deliver": Renamed("prefix.mode", removed_in="0.2"),
    "train.recompute": Renamed("train.gradient_checkpointing", removed_in="0.2"),
}
"""Renamed settings by their old dotted names."""


def with_new_names(layer: Mapping[str, Any], renamed: Mapping[str, Renamed] = RENAMED) -> dict[str, Any]:
    """Replace old names of settings in a layer, and print one line for each on standard error.

    Raises:
        ConfigError: the layer gives both names of a setting.

    **Limits**: a layer without old names is returned as it is. A process prints each notice once.
    """
    current = dict(layer)
    for old, new in renamed.items():
        section, _, key = old.partition(".")
        table = current.get(section)
        if not isinstance(table, Mapping) or key not in table:
            continue
        new_key = new.name.removeprefix(f"{section}.")
        if new_key in table:
            raise ConfigError(f"{old} is the old name of {new.name}, and both are given; keep {new.name} only")
        current[section] = {new_key if name == key else name: value for name, value in table.items()}
        notify(old, new)
    return current


@functools.cache
def notify(old: str, new: Renamed) -> None:
    say(f"heliostat: {old} is now {new.name}; version {new.removed_in} will refuse the old name", sys.stderr)
