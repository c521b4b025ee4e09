r"""Decide whether two answers are mathematically equal: math-verify's verdict, with its known errors corrected.

math-verify reads LaTeX with a grammar that skips unknown input, lowers the case of letters, drops units, and
compares numbers to 15 digits after the point. So ``0.\overline{36}`` is 0 to it, ``no`` is ``on``, and 2^-90 is 2^-89.
An answer is accepted if

    it has the same canonical text as the oracle answer, even if math-verify reads them otherwise, or
    math-verify accepts it, and nothing here refutes that: its kind (set, interval, words), unit, order of letters, a
    digit that math-verify never looked at, an equation that is false, or its value at 30 digits.

Left out: finding the answer in a text (``final_answer``). Imports math-verify, and so sympy, with 0.6 CPU-seconds.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any

import math_verify
import sympy
from sympy.logic.boolalg import Boolean

from heliostat.tasks.verifiers.expression_size import is_huge
from heliostat.tasks.verifiers.final_answer import commit, is_prose
from heliostat.tasks.verifiers.notation import canonical, listed, tidy, unwrapped
from heliostat.tasks.verifiers.units import DEGREE, PERCENT, split_unit

MAX_LENGTH = 2000
"""Characters of an answer that is read as mathematics; a longer one is compared as text."""

_MAX_NESTING = 40  # braces and brackets inside each other; the parser takes exponential time in them
_MAX_DIGITS_TRIED = 12
_EXACT = 1e-12  # relative; two exact values that differ by more at 30 digits are different
_DECIMAL = 5e-16  # relative; a decimal that is 15 digits of pi is not pi
_ROUNDED = 2e-5  # relative; the rounding error of six decimals
_POINTS = tuple(sympy.Rational(*pair) for pair in ((7, 5), (11, 3), (13, 17), (19, 7), (23, 11), (29, 13)))
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_NO_SUM = re.compile(
    r"\d{1,2}:[0-5]\d|\d+ ?:[^:]+:.*|\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{2,4}"
)  # times, proportions, dates
_DANGLING = re.compile(r"(?:[-+*/^=<>]|\\(?:times|cdot|div|pm|le|ge))$")
_NAMED = re.compile(r"[A-Za-z\\][^=+*/^<>-]*=([^=]+)", re.DOTALL)
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_BINOMIAL = re.compile(r"\\(?:binom|choose|dbinom|tbinom)|_\{?\d+\}? ?[CP]_")
_NAME = re.compile(r"(?<![\\A-Za-z])[A-Za-z]\d")  # ``a2`` is a name, and no product of a and 2
_PRODUCT = re.compile(r"[abcxyz]{2,3}|[b-df-hj-np-tv-z]{2,4}|[uvw]{2,3}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer, ready to compare.

    Attributes:
        key: its canonical text.
        value: the input of math-verify: without unit, and the last part of a chain of equations.
        kind: by its brackets: ``set``, ``interval``, ``list``, ``words`` or empty.
        is_mathematics: whether there is anything to work out.
        right: canonical text of a name's definition: ``x^2`` in ``y = x^2``.
    """

    key: str
    value: str = ""
    unit: str = ""
    kind: str = ""
    is_mathematics: bool = False
    right: str = ""


@functools.lru_cache(maxsize=512)
def read(text: str) -> tuple[Answer, ...]:
    """Read the answers that a text may be said to commit to: one, seldom two."""
    return tuple(_read(part, committed.bare) for committed in commit(text) for part in _sides(committed.text))


def same(answer: str, text: str, lenient: bool = False) -> bool:
    r"""Return whether ``text`` commits to ``answer``.

    Args:
        lenient: accept a text that lacks the percent or degree sign of the answer, and an exact value for a decimal
            answer that is its rounding (``1/3`` for ``0.333333``).

    Limits:
        Every answer accepts itself. A decimal text counts for an exact answer from six decimals on. The order of a bare
        list is free, that of a tuple is not; sets and intervals are no tuples of each other.
    """
    literal = canonical(tidy(answer))
    return any(
        found.key and (found.key == literal or _accepts(gold, found, lenient))
        for found in read(text)
        for gold in read(answer)
    )


def _accepts(gold: Answer, found: Answer, lenient: bool) -> bool:
    if found.key in (gold.key, gold.right) or (found.right and found.right == gold.key):
        return True
    if not (gold.is_mathematics and found.is_mathematics) or _differ_in_kind(gold, found, lenient):
        return False
    values = [found.value]
    if found.unit == PERCENT and not gold.unit:
        values.append(rf"\frac{{{found.value}}}{{100}}")
    if lenient and gold.unit == PERCENT and not found.unit:
        values.append(rf"100 \cdot {found.value}")
    return any(_is_same(gold.value, value, lenient) for value in values)


def _is_same(gold: str, found: str, lenient: bool) -> bool:
    golds, founds = parse(gold), parse(found)
    if any(map(is_huge, (*golds, *founds))):
        return bool(golds and founds and golds[0] == founds[0])
    if not math_verify.verify(list(golds), list(founds), allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return _is_faithful(gold) and _is_faithful(found) and not _refuted(golds[0], founds[0], lenient)


@functools.lru_cache(maxsize=512)
def parse(value: str) -> tuple[Any, ...] | list[Any]:
    """Return math-verify's readings of a value, best first; empty if it finds none."""
    if r" \lor " in value and (union := _union(value.split(r" \lor "))) is not None:
        return [union]
    readings: list[Any] = math_verify.parse(f"${value}$", parsing_timeout=None)
    return readings


def _sides(text: str) -> list[str]:
    r"""Return both sides of ``x = 1/3 \approx 0.333`` if they agree."""
    parts = _APPROXIMATELY.split(text)
    if len(parts) != 2 or not all(part.strip() for part in parts):
        return [text]
    exact, rounded = (_number(_EQUALS.split(part)[-1]) for part in parts)
    agree = exact is None or rounded is None or abs(exact - rounded) <= 0.01 * abs(exact)
    return parts if agree else [text]


def _read(text: str, bare: bool) -> Answer:
    key = canonical(text)
    prose = bare and is_prose(listed(text))
    if not key or prose or len(text) > MAX_LENGTH or _nesting(text) > _MAX_NESTING:
        return Answer(key)
    if _BINOMIAL.search(text) and re.search(r"\d{5}", text):  # the parser works those out
        return Answer(key)
    quantity = split_unit(listed(text))
    value = _last_equal(re.sub(r" ?, ?", ", ", quantity.value).replace("$", ""))
    if value is None or not value or _DANGLING.search(value.rstrip()):
        return Answer(key)
    named = _NAMED.fullmatch(value)
    right = canonical(named[1]) if named else ""
    return Answer(key, value, quantity.unit, _kind(value), not _NO_SUM.fullmatch(value), right)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def _last_equal(value: str) -> str | None:
    """Return the last part of an equation chain; ``None`` if it is false (``6 = 5``), all if it defines variables."""
    parts = _split_equations(value)
    if len(parts) == 1 or "," in value or r"\begin" in value:
        return value
    numbers = [_number(part) for part in parts]
    known = [number for number in numbers if number is not None]
    if any(abs(a - b) > _rounding(parts) * max(1.0, abs(b)) for a, b in itertools.pairwise(known)):
        return None
    if len(known) == len(parts):
        return parts[-1]
    return value if len(parts) == 2 else f"{parts[0]} = {parts[-1]}"


def _split_equations(value: str) -> list[str]:
    """Split at equals signs outside brackets."""
    cuts, depth = [-1], 0
    for position, character in enumerate(value):
        depth += (character in "{([") - (character in "})]")
        if depth == 0 and character == "=" and value[position - 1 : position] not in ("<", ">", "!", ":", "\\"):
            cuts.append(position)
    return [value[start + 1 : end].strip() for start, end in itertools.pairwise([*cuts, len(value)])]


def _rounding(parts: list[str]) -> float:
    return 0.01 if any(re.search(r"\d\.\d", part) for part in parts) else 1e-9


def _number(part: str) -> float | None:
    """Return the value of a part without variables."""
    if not re.search(r"\d", part) or re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", unwrapped(part)):
        return None
    for reading in math_verify.parse(f"${split_unit(part).value}$", parsing_timeout=None)[:1]:
        if isinstance(reading, sympy.Expr) and not reading.free_symbols:
            number = reading.doit().evalf(15)
            return float(number) if number.is_Float or number.is_Rational else None
    return None


def _kind(value: str) -> str:
    if value.startswith(r"\{") and value.endswith(r"\}"):
        return "set"
    if value[:1] in "([" and value[-1:] in ")]" and "," in value and _closes_last(value):
        return f"interval {value[0]}{value[-1]}"
    if re.fullmatch(r"[A-Za-z' ]+", unwrapped(value).strip()):
        return "words"
    return ""


def _closes_last(value: str) -> bool:
    """Return whether the bracket that opens first closes last."""
    depth = 0
    for position, character in enumerate(value):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(value) - 1
    return False


def _differ_in_kind(gold: Answer, found: Answer, lenient: bool) -> bool:
    if gold.unit and found.unit and gold.unit != found.unit:
        return True
    if gold.unit and not found.unit and gold.unit.startswith((PERCENT, DEGREE)) and not lenient:
        return True
    kinds = {gold.kind.partition(" ")[0], found.kind.partition(" ")[0]}
    if kinds == {"set", "interval"} or (kinds == {"interval"} and gold.kind != found.kind):
        return True
    if "words" in kinds:
        return not _same_product(gold, found) if len(kinds) == 1 else not _defines(gold, found)
    if bool(_NAME.search(gold.value)) != bool(_NAME.search(found.value)):
        return True
    figures = [re.findall(r"[A-Z]{2,}", unwrapped(side.value)) for side in (gold, found)]
    if sorted(figures[0]) != sorted(figures[1]) and sorted("".join(figures[0])) == sorted("".join(figures[1])):
        return True
    letters = _letters(gold.value), _letters(found.value)
    return letters[0] != letters[1] and letters[0].lower() == letters[1].lower()


def _same_product(gold: Answer, found: Answer) -> bool:
    words = unwrapped(gold.value).strip(), unwrapped(found.value).strip()
    return all(map(_PRODUCT.fullmatch, words)) and sorted(words[0]) == sorted(words[1])


def _defines(gold: Answer, found: Answer) -> bool:
    """Return whether one side is letters, and the other defines them or their combination: ``y = ab``, ``e^1``."""
    word, other = (gold, found) if gold.kind == "words" else (found, gold)
    plain = unwrapped(word.value).strip()
    return (len(plain) == 1 or bool(_PRODUCT.fullmatch(plain))) and bool(re.search(r"[=^*+/\\]", other.value))


def _letters(value: str) -> str:
    """Return the distinct single letters of a value, without commands and words."""
    plain = re.sub(r"\\[A-Za-z]+|[A-Za-z]{5,}", " ", unwrapped(value))
    return "".join(sorted(set(re.findall(r"[A-Za-z]", plain)), key=lambda letter: (letter.lower(), letter)))


def _union(parts: list[str]) -> sympy.Set | None:
    """Return the union of inequalities in one variable."""
    relations = [next(iter(math_verify.parse(f"${part}$", parsing_timeout=None)), None) for part in parts]
    names = {symbol for relation in relations if isinstance(relation, sympy.Basic) for symbol in relation.free_symbols}
    if len(names) != 1 or not all(isinstance(relation, Boolean) for relation in relations):
        return None
    return sympy.Union(*(relation.as_set() for relation in relations if relation is not None))


@functools.lru_cache(maxsize=512)
def _is_faithful(value: str) -> bool:
    r"""Return whether math-verify reads all digits of a value: another digit must give another reading.

    It skips input that its grammar does not know: ``0.\overline{36}`` is 0, and so is any other period.
    """
    reading = _first(value)
    for match in itertools.islice(re.finditer(r"\d(?!\d)", value), _MAX_DIGITS_TRIED):
        others = (f"{value[: match.start()]}{(int(match[0]) + shift) % 10}{value[match.end() :]}" for shift in (1, 3))
        if all(_first(other) == reading for other in others):  # one may agree: 5 over 2 is 5 over 3
            return False
    return True


def _first(value: str) -> object:
    readings = parse(value)
    return readings[0] if readings else None


def _refuted(gold: Any, found: Any, lenient: bool) -> bool:
    """Return whether two objects that math-verify considers equal differ at 30 digits."""
    if isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr):
        return _differ(gold, found, lenient)
    if isinstance(gold, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase):
        return any(_refuted(a, b, lenient) for a, b in zip(gold.flat(), found.flat(), strict=False))
    if isinstance(gold, sympy.Eq) and isinstance(found, sympy.Eq):
        return gold.lhs == found.lhs and _refuted(gold.rhs, found.rhs, lenient)
    if isinstance(gold, sympy.Interval | sympy.Tuple | sympy.FiniteSet) and type(gold).__name__ == type(found).__name__:
        pairs = zip(_members(gold), _members(found), strict=False)
        return any(_refuted(a, b, lenient) for a, b in pairs)
    return False


def _members(collection: Any) -> list[Any]:
    if isinstance(collection, sympy.Interval):
        return [collection.start, collection.end]
    members = list(collection.args)
    return sorted(members, key=_magnitude) if isinstance(collection, sympy.FiniteSet) else members


def _magnitude(member: Any) -> tuple[float, str]:
    value = member.evalf(15) if isinstance(member, sympy.Expr) and not member.free_symbols else None
    return (float(value), "") if value is not None and value.is_real else (0.0, str(member))


def _differ(gold: sympy.Expr, found: sympy.Expr, lenient: bool) -> bool:
    decimal = gold.has(sympy.Float), found.has(sympy.Float)
    rounded = decimal[1] or (decimal[0] and lenient)
    symbols = sorted(gold.free_symbols | found.free_symbols, key=str)
    for shift in range(2 if symbols else 1):
        point = dict(zip(symbols, itertools.cycle(_POINTS[shift:]), strict=False))
        values = [_value(side, point) for side in (gold, found)]
        if None in values:
            continue
        gap, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
        if gap > (_ROUNDED if rounded else _DECIMAL if decimal[0] else _EXACT) * size:
            return True
    return False


def _value(side: sympy.Expr, point: dict[Any, Any]) -> Any:
    value = side.doit().subs(point).evalf(30)
    return (
        value
        if value.is_number
        and value.is_finite
        and all(part.is_Float or part.is_Rational for part in value.as_real_imag())
        else None
    )
