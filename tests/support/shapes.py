"""Check the shapes that annotations declare, in every call that a test makes.

``install`` must run before ``heliostat`` is imported. jaxtyping's import hook then wraps each function and dataclass of
the modules that declare shapes, and beartype compares arguments and results with them. Only annotations that mention a
tensor's shape are checked: mypy checks the others, and tests pass fakes in their places.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, config, install_import_hook

Function = TypeVar("Function", bound=Callable[..., Any])


def declares_shape(annotation: object) -> bool:
    """Return whether a jaxtyping type occurs in ``annotation``, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(declares_shape(part) for part in get_args(annotation))


def check_shapes(function: Function) -> Function:
    """Wrap ``function`` so that a call compares its arguments and its result with the declared shapes."""
    shaped = {name: kind for name, kind in function.__annotations__.items() if declares_shape(kind)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def shaped_modules() -> list[str]:
    """Return the modules of heliostat that use jaxtyping, found without importing them."""
    spec = find_spec("heliostat")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0])
    return [
        ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(source.rglob("*.py"))
        if "from jaxtyping import" in path.read_text()
    ]


def install() -> None:
    """Check shapes in all modules of heliostat that are imported from here on."""
    install_import_hook(shaped_modules(), f"{__name__}.{check_shapes.__name__}")


@contextmanager
def unchecked() -> Iterator[None]:
    """Check no shapes in the block."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)
