"""Public functions, constructors and methods of the package, for promises about all of them."""

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module

PACKAGES = (
    "heliostat",
    *(
        f"heliostat.{name}"
        for name in (
            *("adapters", "api", "config", "control", "curvature", "linalg", "models", "monitors", "objectives"),
            *("optim", "report", "report.control_page", "report.diagnosis", "research", "rollout", "run_models"),
            *("scaling", "tasks", "theory", "tracking", "traces", "train", "types"),
        )
    ),
)
"""Everything that the documentation shows; ``storage`` is internal, and works on ``Path`` alone."""


def public() -> Iterator[tuple[str, object]]:
    """List public functions, and the constructors and methods of public classes, each once."""
    seen = set()
    for package in PACKAGES:
        module = import_module(package)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == package]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if (
                name.startswith("_")
                or id(value) in seen
                or getattr(value, "__module__", "").partition(".")[0] != ("heliostat")
            ):
                continue
            seen.add(id(value))
            if inspect.isfunction(value):
                yield name, value
            elif inspect.isclass(value) and not issubclass(value, BaseException):
                yield from _methods(name, value)


def _methods(name: str, cls: type) -> Iterator[tuple[str, object]]:
    """Results hold a ``Path``, so a constructor that a dataclass generates is left out."""
    for attribute, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        is_own = attribute == "__init__" and not dataclasses.is_dataclass(cls)
        if inspect.isfunction(function) and (is_own or not attribute.startswith("_")):
            yield f"{name}.{attribute}", function
