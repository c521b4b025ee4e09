"""The tables of ``docs/explanation/theory.md``, computed: ``python -m heliostat.theory`` prints them as Markdown.

Left out: prose, and tables of anything measured in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heliostat.theory.binary import binary_pmd_mean, binary_pmd_part
from heliostat.theory.convergence import steps_to
from heliostat.theory.finite import finite_pmd_mean, finite_pmd_part
from heliostat.theory.step import pmd_mean, pmd_part

BINARY_CASES = ((0.05, 0.01), (0.05, 0.05), (0.05, 0.2), (0.05, 0.9), (0.5, 0.05), (0.5, 0.5))
FINITE_TAUS, FINITE_SUCCESS, NUM_ROLLOUTS = (0.1, 0.3, 1.0), (0.05, 0.2, 0.5), 16
CONVERGENCE_TAUS, CONVERGENCE_START = (0.05, 0.2, 1.0, 3.0), 1e-4


def binary_table() -> str:
    """Tabulate one exact step with 0/1 rewards, for PMD-mean and PMD-part."""
    tau, success = torch.tensor(BINARY_CASES, dtype=torch.float64).unbind(-1)
    mean, part = binary_pmd_mean(success, tau), binary_pmd_part(success, tau)
    header = ("τ", "p", "ρ₊ mean / part", "ρ₋ mean / part", "λ", "new accuracy mean / part", "χ² share")
    rows = [
        (
            f"{tau[i]:g}",
            f"{success[i]:g}",
            f"{mean.ratio_correct[i]:.3g} / {part.ratio_correct[i]:.3g}",
            f"{mean.ratio_incorrect[i]:.2g} / {part.ratio_incorrect[i]:.2g}",
            f"{mean.lam[i]:.2f}",
            f"{mean.success[i]:.3f} / {part.success[i]:.3f}",
            f"{mean.chi2_share[i]:.2f}",
        )
        for i in range(len(BINARY_CASES))
    ]
    return _markdown(header, rows)


def finite_table() -> str:
    """Tabulate the standard deviation of the new log-odds over the draw of 16 rollouts, mean / part."""
    tau = torch.tensor(FINITE_TAUS, dtype=torch.float64)[:, None]
    success = torch.tensor(FINITE_SUCCESS, dtype=torch.float64)
    mean, part = finite_pmd_mean(success, tau, NUM_ROLLOUTS), finite_pmd_part(success, tau, NUM_ROLLOUTS)
    noise_mean, noise_part = mean.sd(mean.log_odds), part.sd(part.log_odds)
    rows = [
        (f"{FINITE_TAUS[i]:g}", *(f"{noise_mean[i, j]:.2f} / {noise_part[i, j]:.2f}" for j in range(len(success))))
        for i in range(len(FINITE_TAUS))
    ]
    return _markdown(("τ", *(f"p = {p:g}" for p in FINITE_SUCCESS)), rows)


def convergence_table() -> str:
    """Tabulate the number of exact steps from one success in ten thousand to 99%."""
    rows = [
        (f"{tau:g}", *(str(steps_to(method, CONVERGENCE_START, tau)) for method in (pmd_mean, pmd_part)))
        for tau in CONVERGENCE_TAUS
    ]
    return _markdown(("τ", "PMD-mean", "PMD-part"), rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
