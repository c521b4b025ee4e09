"""Numbers as people write them, read exactly and without evaluating anything.

Left out: expressions, units and LaTeX (the ``math`` verifier reads those).
"""

from __future__ import annotations

import re
from decimal import Context, Decimal

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"[+-]?(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{{1,6}})?(?:\s*/\s*{_DIGITS}(?:\.\d+)?)?"
# No two neighbouring parts match the same whitespace: a text of n characters takes O(n) steps, not O(n^2).
_WHOLE = re.compile(rf"(?P<sign>[+-]?)\s*(?:[$€£]\s*)?(?P<number>{_NUMBER})\s*(?:%\s*)?\.?", re.ASCII)
_ANYWHERE = re.compile(rf"(?<![\w.])(?P<number>{_NUMBER})", re.ASCII)
_CONTEXT = Context(prec=60, Emax=10**9, Emin=-(10**9))
_DASHES = str.maketrans("−–", "--")


def parse_number(text: str) -> Decimal | None:
    """The number that ``text`` is, or ``None`` if it is anything else.

    Reads signs, thousands separators, decimals, exponents and fractions; forgives a currency sign, a percent sign (it
    does not divide), a full stop at the end, and typographic minus signs.

    Limits:
        ``1e999`` is a number; ``nan``, ``inf``, ``0x10``, ``1_000`` and ``1,00`` are not; nor is a fraction over zero.
    """
    match = _WHOLE.fullmatch(text.translate(_DASHES).strip())
    if match is None or (match["sign"] and match["number"][0] in "+-"):
        return None
    return _value(match["sign"] + match["number"])


def last_number(text: str) -> Decimal | None:
    """The last number that occurs in ``text``, or ``None`` if there is none."""
    found = [match["number"] for match in _ANYWHERE.finditer(text.translate(_DASHES))]
    return _value(found[-1]) if found else None


def same_number(value: Decimal, answer: Decimal, tolerance: float) -> bool:
    """Whether ``|value - answer| <= tolerance * max(1, |answer|)``.

    Limits:
        Two whole numbers must be equal, whatever the tolerance.
    """
    if value == answer:
        return True
    if _is_whole(value) and _is_whole(answer):
        return False
    gap = _CONTEXT.abs(_CONTEXT.subtract(value, answer))
    return gap <= _CONTEXT.multiply(Decimal(tolerance), max(Decimal(1), _CONTEXT.abs(answer)))


def _value(number: str) -> Decimal | None:
    numerator, _, denominator = number.replace(",", "").partition("/")
    value = Decimal(numerator.strip())
    if not denominator:
        return value
    divisor = Decimal(denominator.strip())
    return _CONTEXT.divide(value, divisor) if divisor else None


def _is_whole(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and (exponent >= 0 or value == value.to_integral_value())
