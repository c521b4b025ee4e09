r"""Parse units around a number: ``$18``, ``12 \text{ square units}``, ``5 cm``, ``90^\circ``, ``50\%``.

Left out: converting one unit to another; a metre is not a hundred centimetres here. Compound units (``5 feet 3
inches``) are compared as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from heliostat.tasks.verifiers.notation import unwrapped

PERCENT, DEGREE = "%", "degree"
_NAMES = {
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres cms",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres kms",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "g": "gram grams",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "V": "volt volts",
    "A": "amp amps ampere amperes",
    "Hz": "hertz",
    "Pa": "pascal pascals",
    "K": "kelvin kelvins",
    "mol": "mole moles",
    "mi/h": "mph",
    "km/h": "kph kmh",
    "rad": "radian radians",
    "unit": "units",
    "$": "dollar dollars usd bucks",
    "€": "euro euros eur",
    "£": "gbp",
    "¥": "yen jpy",
    "¢": "cent cents",
    PERCENT: "percent percents percentage pct",
    DEGREE: "degrees deg degs",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in [unit, *names.split()]}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_CURRENCY = re.compile(
    r"^([-+]? ?)(?:(?:\\text ?\{ ?)?(\\?\$|[€£¥]|\\(?:euro|pounds)|USD|EUR|GBP|US\$)(?: ?\})?) ?(?=[-\d.(\\])"
)
_MARK = re.compile(
    r" ?(?:(\\?%)|\^ ?\\circ ?(?:\\text ?\{ ?([CF]) ?\}|\\mathrm ?\{ ?([CF]) ?\}|([CF]))?|(\\?\$|[€£¥¢]))$"
)
_WORDS = re.compile(
    r"(?<=[\d})\]a-zI!.])((?: ?(?:\\(?:text|mathrm|textrm|mbox|textbf|mathit|text|rm) ?\{[^{}\d]*\}|\\cdot|/"
    r"|(?:(?<=[\d \}/])[A-Za-z]{2,}|(?<=[ /])[mshgLlNJWVAK](?= ?(?:$|/|\^))))(?:\^\{?-?[1-3]\}?)?)+)\.?$"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value, and its unit in one spelling; empty: none."""

    value: str
    unit: str = ""


def split_unit(text: str) -> Quantity:
    r"""Split a tidy text into value and unit.

    Limits:
        Only units after or before a number; a letter after a number is a variable (``5m``), after a space a unit
        (``5 m``). ``million`` and its kin are factors, no units.
    """
    unit = ""
    if currency := _CURRENCY.match(text):
        unit = _spelled(currency[2].lstrip("\\"))
        text = currency[1] + text[currency.end() :]
    if mark := _MARK.search(text):
        text = text[: mark.start()]
        unit = (
            PERCENT
            if mark[1]
            else _spelled(mark[5].lstrip("\\"))
            if mark[5]
            else DEGREE + (mark[2] or mark[3] or mark[4] or "")
        )
    elif not unit or re.search(r"[a-z]{3,}\W*$", text):
        text, words = _split_words(text)
        unit = unit or words
    return Quantity(text.strip(), unit)


def _split_words(text: str) -> tuple[str, str]:
    match = _WORDS.search(text[-200:])
    start = len(text) - len(text[-200:]) + match.start(1) if match else len(text)
    if match is None or not re.search(r"[\d}]", text[:start]) or text[:start].count("{") != text[:start].count("}"):
        return text, ""
    words = unwrapped(match[1]).strip(" .").replace("{", "").replace("}", "")
    first, _, rest = words.partition(" ")
    if first.lower() in _SCALES:
        return rf"{text[:start]}\times 10^{{{_SCALES[first.lower()]}}}", _spelled(rest)
    return text[:start], _spelled(words)


def _spelled(words: str) -> str:
    """Normalize a unit: ``square inches``, ``sq. in`` and ``in^2`` become ``in^2``."""
    words = re.sub(r"\bper\b", "/", words.replace("\\cdot", "*").replace(".", " "))
    out: list[str] = []
    power = ""
    for word in re.findall(r"[A-Za-z$€£¥¢%]+|\^-?\d|[/*]", words):
        lower = word.lower()
        if lower in ("square", "sq", "cubic", "cu"):
            power = "^2" if lower[0] == "s" else "^3"
            continue
        out.append((_UNITS.get(word) or _UNITS.get(lower) or _singular(word if len(word) < 4 else lower)) + power)
        power = ""
    return " ".join(out).replace(" ^", "^").replace(" / ", "/").replace(" * ", "*")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
