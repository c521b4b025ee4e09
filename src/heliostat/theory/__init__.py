"""Exact float64 solutions of mirror-descent updates on finite action sets.

    step.pmd_mean, pmd_part, pmd_baseline    the policy that each regression converges to, with a certificate
    binary                                   correct against incorrect: closed forms and regimes
    finite                                   steps from n rollouts, summed exactly over their draw
    convergence                              repeated steps
    draw_all                                 plots of ``docs/explanation/theory.md`` (tables: ``__main__``)
    draw_measured                            a trainer's steps over the exact ones

Nothing here trains or imports the objectives, so a test that compares the two compares two derivations.
"""

from heliostat.theory.binary import BinaryStep, binary_pmd_mean, binary_pmd_part, plentiful, scarce, tilted
from heliostat.theory.certificate import Certificate, MirrorStep
from heliostat.theory.convergence import Telescoping, Trajectory, iterate, steps_to, telescoping
from heliostat.theory.finite import FiniteSample, finite_pmd_mean, finite_pmd_part
from heliostat.theory.measured import MeasuredStep, draw_measured
from heliostat.theory.plots import draw_all
from heliostat.theory.step import pmd_baseline, pmd_mean, pmd_part

__all__ = [
    "BinaryStep",
    "Certificate",
    "FiniteSample",
    "MeasuredStep",
    "MirrorStep",
    "Telescoping",
    "Trajectory",
    "binary_pmd_mean",
    "binary_pmd_part",
    "draw_all",
    "draw_measured",
    "finite_pmd_mean",
    "finite_pmd_part",
    "iterate",
    "plentiful",
    "pmd_baseline",
    "pmd_mean",
    "pmd_part",
    "scarce",
    "steps_to",
    "telescoping",
    "tilted",
]
