"""Refuse runs that start inside a worker process, or while the module of a reward or an environment is imported.

Without this, a script that trains on import and holds its own reward function would start itself again in every
verifier process, without end. Imports the standard library only.

Left out: sending functions to the processes (``tasks.sandbox.pickling``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INSIDE = "HELIOSTAT_VERIFIER_PROCESS"
"""Set in the environment variables of every worker process, of verifiers and of environments, and its descendants."""

_imported_for: ContextVar[str] = ContextVar("imported_for", default="")


class NestedRun(RuntimeError):
    """A run or a pool of processes was started inside a worker process or an import."""


@contextmanager
def importing(path: str) -> Iterator[None]:
    """Mark the block as the import of the module of ``path``, a ``module:function``."""
    token = _imported_for.set(path)
    try:
        yield
    finally:
        _imported_for.reset(token)


def in_verifier_process() -> bool:
    """Return whether this is a worker process, or a descendant of one."""
    return bool(os.environ.get(INSIDE))


def refuse_nested(what: str) -> None:
    """Refuse to start ``what`` in a worker process, or while the module of a reward or an environment is imported.

    Raises:
        NestedRun: it is one of these.
    """
    way_out = (
        "put what starts it under if __name__ == '__main__':, or move the function into a module of its own, or pass "
        "it as it is: post_train(..., rewards=[function])"
    )
    if path := _imported_for.get():
        raise NestedRun(f"the module of '{path}' starts {what} whenever it is imported; {way_out}")
    if in_verifier_process():
        raise NestedRun(f"a verifier process may not start {what}, and a module that it imported does; {way_out}")
