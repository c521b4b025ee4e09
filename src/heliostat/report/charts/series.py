"""A metric over steps as drawable points: gaps, fewer points, and a moving average.

``None`` is a number that was logged but not finite: the line breaks there. A step at which the metric was not logged
at all is simply absent, and the line runs past it. Left out: scales and drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Point: TypeAlias = "tuple[float, float]"
Points: TypeAlias = "Sequence[tuple[float, float | None]]"


def segments(points: Points) -> list[list[Point]]:
    """Return the stretches of finite values between gaps, in order."""
    stretches: list[list[Point]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def thin(points: Points, max_points: int) -> list[list[Point]]:
    """Return segments with about ``max_points`` points in all; every point kept is one that was measured.

    Each bucket of neighbours keeps its lowest and its highest point, so a spike survives where averaging would hide it.

    **Limits** With no more than ``max_points`` points nothing changes. First, last, lowest and highest point of each
    segment always stay.
    """
    stretches = segments(points)
    total = sum(len(stretch) for stretch in stretches)
    if total <= max_points:
        return stretches
    return [_thin_segment(stretch, max(2, round(max_points * len(stretch) / total))) for stretch in stretches]


def smooth(points: Points, half_width: int) -> list[tuple[float, float | None]]:
    """Return the centred moving average over ``2 half_width + 1`` points, one-sided towards the ends; gaps stay gaps.

    **Limits** A constant series is unchanged; ``half_width = 0`` changes nothing.
    """
    smoothed: list[tuple[float, float | None]] = []
    for index, (x, y) in enumerate(points):
        if y is None:
            smoothed.append((x, None))
            continue
        neighbours = points[max(0, index - half_width) : index + half_width + 1]
        window = [value for _, value in neighbours if value is not None]
        smoothed.append((x, sum(window) / len(window)))
    return smoothed


def ends(points: Points) -> tuple[float, float] | None:
    """Return the means of the first and of the last tenth of a series."""
    values = [y for _, y in points if y is not None]
    if len(values) < 2:
        return None
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def _thin_segment(stretch: list[Point], max_points: int) -> list[Point]:
    if len(stretch) <= max_points:
        return stretch
    num_buckets = max(1, (max_points - 2) // 2)
    inner = stretch[1:-1]
    kept = [stretch[0]]
    for bucket in range(num_buckets):
        chunk = inner[bucket * len(inner) // num_buckets : (bucket + 1) * len(inner) // num_buckets]
        extremes = {min(chunk, key=lambda point: point[1]), max(chunk, key=lambda point: point[1])} if chunk else set()
        kept.extend(sorted(extremes))
    return [*kept, stretch[-1]]
