"""Values that a worker process reports: finite numbers, and excerpts of the text that it worked on.

Imports the standard library only.
"""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real

_EXCERPT = 60


def finite_float(value: object, name: str) -> float | None:
    """Convert a number, or a scalar of numpy or torch, to a finite float; ``None`` stays ``None``.

    Args:
        name: the value's name in messages, with its article.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite.
    """
    if value is None:
        return None
    if not isinstance(value, Real | Decimal):
        value = value.item() if hasattr(value, "item") else value  # a scalar of numpy or torch
    if not isinstance(value, Real | Decimal):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r:.80}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def excerpt(text: str) -> str:
    """Return a text, or its end if it is long: answers stand at the end."""
    return repr(text if len(text) <= _EXCERPT else f"…{text[-_EXCERPT:]}")
