"""Measured steps over the exact ones: the progress of a trainer's update phases towards PMD-mean's step.

A measured step is a point at its batch's success rate; the exact step at the same temperature is a curve. Points on the
curve are solved subproblems, points between it and no movement are phases that ended on the way.

The curve belongs to one success rate: a batch whose problems differ in difficulty is an average of points on it, which
lies nearer to zero than the curve at the average rate.

Left out: reading the metrics (the caller does), rewards other than 0 and 1, and other baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat.arguments import PathArg, as_path
from heliostat.theory.binary import binary_pmd_mean
from heliostat.theory.plots import INK, TAU_COLOURS, save


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One update phase, as logged.

    Attributes:
        tau: temperature of the phase, in reward units per nat; rewards are 0 and 1.
        success: success rate of the rollouts, strictly between 0 and 1.
        lam: minus their mean sequence log-ratio.
        log_ratio_correct, log_ratio_incorrect: that mean in each class, in nats.
    """

    tau: float
    success: float
    lam: float
    log_ratio_correct: float
    log_ratio_incorrect: float


def draw_measured(steps: Sequence[MeasuredStep], folder: PathArg) -> Path:
    """Draw ``measured.svg``: lambda and both classes' log-ratios against p, exact as lines, measured as points.

    Args:
        steps: at least one; of at most as many different temperatures as there are colours (four).
        folder: created if it is not there.

    Raises:
        ValueError: no steps, or too many temperatures to tell apart.
        ModuleNotFoundError: matplotlib is not installed (extra ``plots``).
    """
    taus = sorted({step.tau for step in steps})
    if not 1 <= len(taus) <= len(TAU_COLOURS):
        raise ValueError(f"measured steps of 1 to {len(TAU_COLOURS)} temperatures can be drawn, got {len(taus)}")

    def draw(axes: Any) -> None:
        p = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
        for tau, colour in zip(taus, TAU_COLOURS, strict=False):
            exact, mine = binary_pmd_mean(p, tau), [step for step in steps if step.tau == tau]
            curves = (exact.lam, exact.ratio_correct.log(), exact.ratio_incorrect.log())
            for axis, curve, key in zip(axes, curves, _KEYS, strict=True):
                axis.plot(p, curve, color=colour, linewidth=1.1, label=f"τ = {tau:g}, exact")
                points = [getattr(step, key) for step in mine]
                axis.plot([step.success for step in mine], points, ".", color=colour, label=f"τ = {tau:g}, measured")
        for axis, name in zip(axes, ("λ (nats)", "s of correct answers", "s of incorrect answers"), strict=True):
            axis.axhline(0.0, color=INK, linewidth=0.8)
            axis.set(xlabel="p, success before the step", ylabel=name, xlim=(0, 1))
        axes[2].legend(loc="lower left")

    return save("measured", draw, 3, as_path(folder))


_KEYS = ("lam", "log_ratio_correct", "log_ratio_incorrect")
