"""``--json``: one JSON object on standard output, and everything else that is printed meanwhile on standard error.

Left out: the content of the objects, which each command knows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]


def print_json(args: Namespace, result: Result) -> None:
    """Give ``entry.main`` the object to print when the command is done.

    Args:
        result: JSON values; numbers that are not finite become ``null``.
    """
    args.show_json(result)


@contextlib.contextmanager
def json_alone(is_asked: bool) -> Iterator[Callable[[Result], None]]:
    """Keep standard output free for one object while a command runs, and print the object at the end of the block.

    The file descriptor is redirected too, since a verifier of the user's own may print from a process of its own.

    Returns:
        A function that takes the object. Nothing is printed if the block raises.
    """
    results: list[Result] = []
    if not is_asked:
        yield results.append
        return
    with _stdout_on_stderr():
        yield results.append
    for result in results:
        print(json.dumps(_finite(result), indent=2, allow_nan=False))


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
