"""Colours, computed from the style sheet: readable on both surfaces, and told apart with any colour vision."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray

Colour = NDArray[np.float64]

SHEET = files("heliostat.report.html").joinpath("style.css").read_text(encoding="utf-8")
PAIRS = {name: pair for name, *pair in re.findall(r"--([\w]+): light-dark\((#\w{6}), (#\w{6})\)", SHEET)}
LINES = [f"c{index}" for index in range(1, 7)]

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def linear(code: str) -> Colour:
    channel = np.array([int(code[index : index + 2], 16) for index in (1, 3, 5)]) / 255
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio."""
    dark, light = sorted(float(linear(code) @ [0.2126, 0.7152, 0.0722]) for code in (first, second))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: Colour) -> Colour:
    """CIELAB of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (to_xyz @ np.clip(rgb, 0, 1)) / [0.9505, 1, 1.089]
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_they_lie_on(theme: int) -> None:
    grounds = [PAIRS[name][theme] for name in ("page", "surface", "sunken")]
    for ground in grounds:
        assert contrast(PAIRS["text"][theme], ground) > 7
        assert contrast(PAIRS["muted"][theme], ground) > 4.5
    for name in ("good", "bad", "sun"):
        assert contrast(PAIRS[name][theme], PAIRS["surface"][theme]) > 4.5
    for name in LINES:
        assert contrast(PAIRS[name][theme], PAIRS["surface"][theme]) > 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", list(VISION))
def test_lines_are_told_apart_with_any_colour_vision(theme: int, vision: str) -> None:
    seen = [lab(VISION[vision] @ linear(PAIRS[name][theme])) for name in LINES]
    nearest = min(float(np.linalg.norm(first - second)) for first, second in itertools.combinations(seen, 2))
    assert nearest > 15
