"""From numbers to positions and labels: axis domains, ticks, and how a number is written.

    position = (value - low) / (high - low)        linear
    position = log(value / low) / log(high / low)  logarithmic

Left out: dates, categories, and anything that knows about SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: its ends, its ticks, and whether it is logarithmic.

    **Limits** ``fraction(low) = 0`` and ``fraction(high) = 1``; a logarithmic scale puts values at or below zero at 0.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def fraction(self, value: float) -> float:
        """Return the position of a value along the axis, 0 at ``low`` and 1 at ``high``, never outside."""
        if self.log:
            if value <= 0:
                return 0.0
            position = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            position = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, position))

    def labels(self, unit: str = "") -> list[str]:
        """Return one label per tick; ticks that differ get labels that differ."""
        if self.log:
            percent = unit == "fraction"
            return [f"{_power(100 * tick)}%" if percent else _power(tick) for tick in self.ticks]
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(self.high - self.low)
        return [_tick_label(tick, step, unit) for tick in self.ticks]


def nice_step(span: float, num_ticks: int, whole: bool = False) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that cuts ``span`` into at most ``num_ticks`` parts."""
    raw = span / num_ticks
    magnitude = 10.0 ** math.floor(math.log10(raw))
    steps = (1.0, 2.0, 5.0, 10.0) if whole else (1.0, 2.0, 2.5, 5.0, 10.0)
    # The tolerance keeps a span of exactly 5 steps from being pushed to the next step by rounding.
    step = next((step * magnitude for step in steps if step * magnitude >= raw * (1 - 1e-9)), 10 * magnitude)
    return max(1.0, step) if whole else step


def linear_scale(values: Sequence[float], bounds: tuple[float, float] | None = None, num_ticks: int = 5) -> Scale:
    """Return an axis that holds all values and ends on ticks; zero joins it when the data come near.

    Args:
        values: finite numbers; none at all gives the axis 0 to 1.
        bounds: fixed ends, for quantities whose whole range is meaningful, such as a success rate.
    """
    low, high = bounds if bounds is not None else _domain(values)
    step = nice_step(high - low, num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def log_scale(values: Sequence[float], num_ticks: int = 5) -> Scale:
    """Return a logarithmic axis between whole powers of ten, with at most ``num_ticks`` of them marked."""
    positive = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive)) + 1e-9), math.ceil(math.log10(max(positive)) - 1e-9)
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / num_ticks))
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Scale(10.0**first, 10.0**last, ticks, log=True)


def step_scale(low: float, high: float, num_ticks: int = 5) -> Scale:
    """Return a horizontal axis over whole steps: it ends exactly at the data and has whole-number ticks inside."""
    if high <= low:
        return Scale(low - 0.5, low + 0.5, (low,))
    step = nice_step(high - low, num_ticks, whole=True)
    ticks = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Scale(low, high, tuple(ticks) if ticks else (low, high))


def wants_log(values: Sequence[float]) -> bool:
    """Return whether positive values spread over more than two powers of ten: a linear axis would hide most."""
    ordered = sorted(value for value in values if value > 0)
    if len(ordered) < 5 or len(ordered) < 0.8 * len(values):
        return False
    return ordered[-1] > 100 * ordered[len(ordered) // 20]


def format_value(value: float, unit: str = "") -> str:
    """Write a number as a person would: fractions as percent, three digits, k/M/G above ten thousand."""
    if unit == "fraction":
        return signed(f"{100 * value:.1f}%")
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return signed(_power(value))
    if size < 1e4:
        return signed(f"{value:.0f}" if size >= 1000 or value == int(value) else f"{value:.3g}")
    return signed(_with_prefix(value, 3))


def format_quantity(value: float, unit: str) -> str:
    """Write a large amount with its prefix on the unit: 10.7 TFLOP."""
    number = _with_prefix(value, 3)
    digits = number.rstrip("kMGTP")
    return f"{digits} {number[len(digits) :]}{unit}"


def format_seconds(seconds: float) -> str:
    """Write a duration in the two largest units that matter: 3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def signed(text: str) -> str:
    """Return a number's text with a typographic minus sign."""
    return text.replace("-", MINUS) if not text.startswith("-0.0%") else text[1:]


def _domain(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    # Below the smallest normal float a step between ticks would underflow: drawn as zero.
    low, high = (value if abs(value) > 1e-300 else 0.0 for value in (min(values), max(values)))
    if 0 < low < 0.5 * high:
        low = 0.0
    if 0.5 * low < high < 0:
        high = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        # A constant series lies in the middle of an axis that shows its size; constant zero on the axis 0 to 1.
        pad = 0.5 * abs(high) if high else 1.0
        return (low - pad, high + pad) if high else (0.0, 1.0)
    return low, high


def _tick_label(tick: float, step: float, unit: str) -> str:
    if unit == "fraction":
        return signed(f"{100 * tick:.{_decimals(100 * step)}f}%")
    if step >= 1000:
        return signed(_with_prefix(tick, 4)) if tick else "0"
    if step < 1e-3:
        return signed(_power(tick, 3)) if tick else "0"
    return signed(f"{tick:.{_decimals(step)}f}") if abs(tick) > step / 2 else "0"


def _decimals(step: float) -> int:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return digits + (not math.isclose(step * 10**digits, round(step * 10**digits)))


def _with_prefix(value: float, digits: int) -> str:
    for size, prefix in PREFIXES:
        if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
            return f"{value / size:.{digits}g}{prefix}" if abs(value) < 1e18 else _power(value)
    return f"{value:.{digits}g}"


def _power(value: float, digits: int = 2) -> str:
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if -3 <= int(exponent) <= 3:
        return signed(f"{value:g}")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return signed(f"{mantissa}e{int(exponent)}")
