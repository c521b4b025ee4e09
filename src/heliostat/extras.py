"""Optional packages: the extra that installs each, and the refusal of a setting whose package is missing.

    require("lora.rank = 4", "lora", "peft")     ConfigError before anything is loaded, if peft is not installed
    with named("heliostat.control.SMAC"): ...    imports that say which extra they lack

Imports the standard library only, and no optional package: whether one is installed is asked of the import system.

Left out: versions of installed packages (``heliostat doctor``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS: dict[str, str] = {
    "math_verify": "tasks",
    "datasets": "data",
    "pyarrow": "data",
    "fsspec": "data",
    "httpx2": "server",
    "wsproto": "environments",
    "scipy": "linalg",
    "matplotlib": "plots",
    "gguf": "smollm2",
    "accelerate": "smollm2",
    "tensorboard": "tensorboard",
    "gymnasium": "control",
    "stable_baselines3": "control",
    "sb3_contrib": "control",
    "mujoco": "mujoco",
    "peft": "lora",
    "trl": "peers",
    "wandb": "wandb",
    "trackio": "trackio",
    "lm_eval": "lm-eval",
}
"""The extra that installs each importable package."""


def is_installed(package: str) -> bool:
    """Return whether a top-level package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def require(user: str, extra: str, *packages: str) -> None:
    """Refuse a setting, command or class whose packages are not installed.

    Args:
        user: what needs them, as the subject of the message: ``lora.rank = 4``.
        extra: the extra of heliostat that installs all of them.

    Raises:
        ConfigError: one is missing; the message names it and the command that installs it.
    """
    from heliostat.config import ConfigError

    for package in packages:
        if not is_installed(package):
            raise ConfigError(lacking(user, package, extra))


@contextmanager
def named(user: str) -> Iterator[None]:
    """Let imports of optional packages say who needs the missing one, and how to install it.

    Raises:
        ModuleNotFoundError: a module is missing; of those that an extra installs, in one sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package, extra = (error.name or "").partition(".")[0], extra_of(error)
        if not extra:
            raise
        raise ModuleNotFoundError(lacking(user, package, extra), name=error.name) from error


def lacking(user: str, package: str, extra: str) -> str:
    """Format the sentence about a missing package, with the command that installs it."""
    return f"{user} needs the package {package}: pip install 'heliostat[{extra}]'"


def extra_of(error: ModuleNotFoundError) -> str:
    """Return the extra that installs the module that an import missed; empty if no extra does."""
    return EXTRAS.get((error.name or "").partition(".")[0], "")
