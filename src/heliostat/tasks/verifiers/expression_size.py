"""Detect expressions that are too large to evaluate: 10^(10^10), (10^6)!, sums over a billion terms.

Exponents and bounds are estimated in floating point, never evaluated.

Left out: integrals and other expressions that are slow without being large; the verifier's time limit ends those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import sympy

MAX_EXPONENT = 20_000
"""Of a number; 2 to this power has 6,000 digits."""

_MAX_EXPANDED = 64  # exponent of a sum with variables, which simplification multiplies out
_MAX_TERMS = 10_000


def is_huge(expression: object) -> bool:
    """Return whether a power, factorial, binomial or sum in ``expression`` is too large to evaluate.

    Limits:
        What is no number is no exponent: ``2^n`` is small.
    """
    return any(map(_is_huge_node, _nodes(expression)))


def _nodes(expression: Any) -> Iterator[Any]:
    entries = expression.flat() if isinstance(expression, sympy.MatrixBase) else [expression]
    for entry in entries:
        if isinstance(entry, sympy.Basic):
            yield from sympy.preorder_traversal(entry)


def _is_huge_node(node: Any) -> bool:
    if isinstance(node, sympy.Pow):
        most = _MAX_EXPANDED if node.base.free_symbols and node.base.is_Add else MAX_EXPONENT
        return abs(_estimate(node.exp)) > most and node.base not in (0, 1, -1)
    if isinstance(node, sympy.factorial | sympy.factorial2 | sympy.gamma | sympy.binomial):
        return abs(_estimate(node.args[0])) > MAX_EXPONENT
    if isinstance(node, sympy.Sum | sympy.Product):
        return any(
            abs(_estimate(limit[2]) - _estimate(limit[1])) > _MAX_TERMS for limit in node.limits if len(limit) == 3
        )
    return False


def _estimate(expression: Any) -> float:
    """Return the value in floating point; infinite on overflow, 0 if there is none."""
    try:
        return _value(expression)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


def _value(expression: Any) -> float:
    if expression.is_Number or not expression.args:
        return float(expression) if expression.is_number and not expression.is_infinite else 0.0
    values = [_value(argument) for argument in expression.args]
    if isinstance(expression, sympy.Add):
        return sum(values)
    if isinstance(expression, sympy.Mul):
        return math.prod(values)
    if isinstance(expression, sympy.Pow):
        return float(abs(values[0]) ** values[1])
    if isinstance(expression, sympy.factorial):
        return math.gamma(values[0] + 1)
    return 0.0
