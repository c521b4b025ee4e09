"""Name and record parts of a run that are not shipped.

    with_parts(tables, {"objective": MyObjective})  a recipe's tables that name it
    importable_name(MyObjective, "objective")       "my_module:MyObjective", and the folder of my_module.py
    source_of("objective", "my_module:MyObjective") "my_module.py, sha256 3f2a90c1b7de", as versions.json records it

Left out: importing parts by name (``named_imports``).
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError, Recipe
from heliostat.named_imports import KINDS, declared, running_script


def with_parts(tables: Mapping[str, Any], parts: Mapping[str, object]) -> dict[str, Any]:
    """Return a recipe's tables with parts in place of its own; the own parts' settings are dropped.

    Args:
        parts: by kind, a name, or a class or function that another process can import; ``None``: the recipe's own. A
            tracker is added to those of the recipe.

    Raises:
        ConfigError: another process could not import a part.
    """
    changed = dict(tables)
    for kind, part in parts.items():
        if part is None:
            continue
        name, folder = (part, "") if isinstance(part, str) else importable_name(part, kind)
        section, _, key = KINDS[kind].setting.partition(".")
        several = isinstance(tables[section][key], list)
        common = type(getattr(Recipe(), section)).model_fields.keys() - ({f"{kind}_settings"} if not several else set())
        kept = {each: value for each, value in tables[section].items() if each in common}
        kept[key] = [*kept[key], name] if several else name
        kept["import_from"] = folder or (kept["import_from"] if several else "")
        changed[section] = kept
    return changed


def importable_name(part: object, kind: str) -> tuple[str, str]:
    """Return ``module:Name`` of a class or function, and the folder that its module is imported from.

    Args:
        kind: the part's kind, for messages.

    Returns:
        The name and the folder. The folder of an installed package is empty. A class of the running script is named by
        the script's file, so that another program finds it too.

    Raises:
        ConfigError: no other process could import it; one sentence that says how.
    """
    name, module = getattr(part, "__qualname__", ""), sys.modules.get(getattr(part, "__module__", None) or "")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{kind}={part!r:.60} is an object; give its class, {kind}={type(part).__name__}, and its settings as "
            "overrides"
        )
    if module is None or vars(module).get(name) is not part:
        raise ConfigError(
            f"{kind}={name} cannot be imported by another process; put it at the top level of a module, like "
            f"my_module.py, and give {kind}=my_module.{name.rpartition('.')[2]}"
        )
    file, home = getattr(module, "__file__", None), module.__name__
    if home == "__main__" and file is not None and Path(file).stem.isidentifier():
        home = module.__spec__.name if module.__spec__ is not None else Path(file).stem
    if file is None or home == "__main__":
        return f"{home}:{name}", ""
    folder = Path(file).resolve().parents[home.count(".") + (Path(file).stem == "__init__")]
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib")]
    is_installed = any(folder.is_relative_to(each) for each in installed)
    return f"{home}:{name}", "" if is_installed else str(folder)


def source_of(kind: str, name: str) -> str:
    """Describe where a part comes from, with its version; empty if it is shipped.

    Args:
        name: as the recipe has it; its module has been imported.

    Returns:
        Of an entry point, its package, version and value. Of a ``module:Name``, the module's file with the start of its
        SHA-256 digest, and the version of the package of that name where one is installed.
    """
    if ":" not in name:
        points = [point for point in declared(kind, name) if point.dist is not None]
        return ", ".join(f"{point.dist.name} {point.dist.version} ({point.value})" for point in points if point.dist)
    home = name.partition(":")[0]
    module = sys.modules.get(home) or running_script(home)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return "defined in the program that started the run"
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    return f"{_package(home)}{Path(file).name}, sha256 {digest}"


def _package(module: str) -> str:
    top = module.partition(".")[0]
    try:
        return f"{top} {version(top)}, "
    except PackageNotFoundError:
        return ""
