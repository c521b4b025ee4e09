r"""Parse numbers as people write them, exactly and without evaluating anything.

Thousands may be grouped by commas (``1,000``, ``1,00,000``) or spaces (``1 000``), never by points. Fractions, mixed
numbers (``5 1/2``), powers of ten (``1.2e3``, ``1.2 x 10^3``) and ``5 million`` are numbers.

Left out: other expressions and units (the ``math`` verifier reads those).
"""

from __future__ import annotations

import collections
import re
import unicodedata
from decimal import Context, Decimal

_GROUPED = r"\d{1,3}(?:,\d{3})++|\d{1,2}(?:,\d{2}(?!\d))++,\d{3}|(?<!\d )\d{1,3}(?: \d{3})++(?! ?\d)"
_DIGITS = rf"(?>{_GROUPED}|\d++)"
_POWER = r"(?:[eE]| ?[x*] ?10\^\{?)(?P<power>[+-]?\d{1,6})\}?"
_SCALE = r"(?: ?(?P<scale>hundred|thousand|million|billion|trillion)(?![A-Za-z])|(?P<kilo>k)(?!\w))"
_NUMBER = (
    r"(?:(?P<whole>\d++) (?P<part>\d++/\d++)"
    rf"|(?P<decimal>{_DIGITS}(?:\.\d*+)?|\.\d++)(?:{_POWER})?(?:\s*+/\s*+(?P<over>{_DIGITS}(?:\.\d++)?))?{_SCALE}?)"
)
# No two neighbouring parts match the same whitespace: a text of n characters takes O(n) steps, not O(n^2).
_MONEY = r"(?:\\?\$|[€£¥])"
_WHOLE = re.compile(
    rf"(?P<sign>[+-]?)\s*+(?:{_MONEY}\s*+)?(?P<inner>[+-]?){_NUMBER}\s*+(?:(?:\\?%|{_MONEY})\s*+)?\.?", re.ASCII
)
_ANYWHERE = re.compile(
    rf"(?<![\w.^])(?<!\d[,/])(?<![\^_]\{{)(?P<sign>(?<!\d)[+-]{_MONEY}?)?{_NUMBER}(?!\d|[.,/]\d|\^)", re.ASCII
)
_MINUS = re.compile(
    r"(?:^|[=:(,;*{#]|(?<![A-Za-z0-9])[A-Za-z]{2,}) ?- $|(?<![A-Za-z])(?:minus|negative) $", re.IGNORECASE
)
_NO_NUMBER = re.compile(  # names (x2), dates and times
    r"(?<![\d.])[A-Za-z_]\w*|\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{2,4}|(?<!\d)\d++(?::\d++)++", re.ASCII
)
_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}|(\d)(\d))", re.ASCII)
_GAP = re.compile(r"(?<=\d)(?:\{,\}|\\,|[\u00a0\u2009\u202f])(?=\d{3})", re.ASCII)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SCALES = {"hundred": 2, "k": 3, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CONTEXT = Context(prec=60, Emax=10**9, Emin=-(10**9))
_SIGNS = {"−": "-", "–": "-", "×": "x", "⁄": "/"} | dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
_TYPOGRAPHY = str.maketrans(_SIGNS)


def parse_number(text: str) -> Decimal | None:
    """Parse ``text`` as a number; ``None`` if it is anything else.

    Reads signs, thousands separators, decimals, powers of ten, fractions, mixed numbers and scales (``5 million``);
    forgives a currency sign, a percent sign (it does not divide), a full stop at the end, and typographic minus signs.

    Limits:
        ``1e999`` is a number; ``nan``, ``inf``, ``0x10``, ``1_000``, ``1,00``, ``2,5``, ``3 apples`` and digits that
        are not ASCII are not; nor is a fraction over zero.
    """
    match = _WHOLE.fullmatch(_plain(text).strip())
    if match is None or (match["sign"] and match["inner"]):
        return None
    return _value(match, match["sign"] + match["inner"] == "-")


def last_number(text: str) -> Decimal | None:
    """Return the last number in ``text``, or ``None`` if there is none.

    Limits:
        It is read whole or not at all: the last digits of ``1,2345``, ``3.0.3`` and ``x^3`` are no number, and no
        number before them counts then. Names (``x2``), dates and times of day are passed over. Words say
        nothing here, ``not`` neither; ``minus`` and ``negative`` do.
    """
    text = _NO_NUMBER.sub(_without_digits, _plain(text))
    found = collections.deque(_ANYWHERE.finditer(text), maxlen=1)
    if not found or found[0].end() <= max(text.rfind(digit) for digit in "0123456789"):
        return None
    (last,) = found
    before = text[max(0, last.start() - 24) : last.start()]
    return _value(last, (last["sign"] or "").startswith("-") or bool(_MINUS.search(before)))


def meets(value: Decimal, answer: Decimal, tolerance: float) -> bool:
    """Return whether a number matches the oracle answer.

    Limits:
        An answer written as a whole number (``7``, not ``7.0``) must be met exactly, regardless of the tolerance.
    """
    return value == answer if _is_integer(answer) else same_number(value, answer, tolerance)


def same_number(value: Decimal, answer: Decimal, tolerance: float) -> bool:
    """Return whether ``|value - answer| <= tolerance * max(1, |answer|)``.

    Limits:
        Two whole numbers must be equal, regardless of the tolerance.
    """
    if value == answer:
        return True
    if _is_whole(value) and _is_whole(answer):
        return False
    gap = _CONTEXT.abs(_CONTEXT.subtract(value, answer))
    return gap <= _CONTEXT.multiply(Decimal(tolerance), max(Decimal(1), _CONTEXT.abs(answer)))


def _plain(text: str) -> str:
    text = _VULGAR.sub(lambda match: _gap(match) + unicodedata.normalize("NFKC", match[0]), text)
    text = (
        re.sub(r"(?<= 10)([⁻⁰¹²³⁴-⁹]+)", r"^\1", text)
        .translate(_TYPOGRAPHY)
        .replace(r"\times", "x")
        .replace(r"\$", "$")
    )
    text = _FRACTION.sub(lambda match: f"{_gap(match)}{match[1] or match[3]}/{match[2] or match[4]}", text)
    return _GAP.sub(" ", text)


def _gap(match: re.Match[str]) -> str:
    """Return the space between a whole number and its fraction."""
    return " " if match.string[max(0, match.start() - 1) : match.start()].isdigit() else ""


def _without_digits(match: re.Match[str]) -> str:
    return re.sub(r"\d", "_", match[0]) if any(map(str.isdigit, match[0])) else match[0]


def _value(match: re.Match[str], negative: bool) -> Decimal | None:
    if match["whole"]:
        numerator, _, denominator = match["part"].partition("/")
        part = _quotient(Decimal(numerator), Decimal(denominator))
        value = None if part is None else Decimal(match["whole"]) + part
    else:
        decimal = match["decimal"].replace(",", "").replace(" ", "")
        scale = match["scale"] or match["kilo"]
        value = Decimal(f"{decimal}E{int(match['power'] or 0) + _SCALES.get(scale, 0)}")
        if match["over"]:
            value = _quotient(value, Decimal(match["over"].replace(",", "").replace(" ", "")))
    return -value if negative and value is not None else value


def _quotient(numerator: Decimal, denominator: Decimal) -> Decimal | None:
    return _CONTEXT.divide(numerator, denominator) if denominator else None


def _is_integer(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= 0


def _is_whole(value: Decimal) -> bool:
    return _is_integer(value) or value == value.to_integral_value()
