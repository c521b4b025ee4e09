"""The pictures of ``docs/explanation/theory.md``, drawn from the exact solutions (matplotlib, extra ``plots``).

SVG on a transparent ground in mid-grey and mid-tone colours, so that one file reads on light and on dark pages; text
stays text. The files are the same byte for byte whenever they are drawn by the same matplotlib.

Left out: anything measured in training (``measured``, ``report``).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliostat.arguments import PathArg, as_path
from heliostat.extras import named
from heliostat.outputs import check_replaceable
from heliostat.storage import publish_file
from heliostat.theory.binary import binary_pmd_mean, binary_pmd_part
from heliostat.theory.convergence import Method, iterate
from heliostat.theory.finite import finite_pmd_mean, finite_pmd_part
from heliostat.theory.step import pmd_baseline, pmd_mean, pmd_part

CREATOR = "heliostat theory plot"
"""In the metadata of every figure; a file without it is not written over."""
TAUS = (0.01, 0.05, 0.2, 1.0)
TAU_COLOURS = ("#c2588c", "#c9772b", "#2f9470", "#4a84cf")
MEAN_COLOUR, PART_COLOUR, INK = "#4a84cf", "#c9772b", "#808080"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "heliostat",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def draw_all(folder: PathArg) -> list[Path]:
    """Draw every figure of the theory page as SVG.

    Args:
        folder: created if it is not there; files of the same names are replaced.

    Returns:
        The files, in the order of the page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``plots``).
    """
    return [save(name, draw, num_panels, as_path(folder)) for name, (draw, num_panels) in FIGURES.items()]


def save(name: str, draw: Callable[[Any], None], num_panels: int, folder: Path) -> Path:
    """Save one figure as ``name.svg`` in ``folder``, in the style of the page; ``draw`` fills its row of panels.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``plots``).
    """
    with named("a figure"):
        import matplotlib
        from matplotlib.figure import Figure
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * num_panels if num_panels > 1 else 5.6, 3.5), layout="constrained")
        axes = figure.subplots(1, num_panels, squeeze=False)[0]
        draw(axes)
        for axis in axes:
            axis.minorticks_off()
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_formatter(lambda value, _: f"{value:g}")
        path = folder / f"{name}.svg"
        check_replaceable(path, CREATOR, "a figure")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": CREATOR})
        publish_file(path, drawn.getvalue())
    return path


def ratios(axes: Any) -> None:
    """Draw new over old probability of correct and of incorrect answers, against p."""
    p = _success()
    for tau, colour in zip(TAUS, TAU_COLOURS, strict=True):
        mean, part = binary_pmd_mean(p, tau), binary_pmd_part(p, tau)
        for axis, key in zip(axes, ("ratio_correct", "ratio_incorrect"), strict=True):
            axis.plot(p, getattr(mean, key), color=colour, label=f"τ = {tau:g}")
            axis.plot(p, getattr(part, key), color=colour, linestyle=(0, (2, 2)), linewidth=1.1)
    _against_p(axes[0], "ratio of correct answers", yscale="log", ylim=(0.8, 1e5))
    _against_p(axes[1], "ratio of incorrect answers", ylim=(-0.02, 1.05))
    axes[0].legend(title="solid mean, dashed part", loc="upper right")


def multiplier(axes: Any) -> None:
    """Draw the multiplier against p: zero at both ends, largest near one half."""
    p = _success(low=1e-6, both_ends=True)
    for tau, colour in zip(TAUS, TAU_COLOURS, strict=True):
        axes[0].plot(p, binary_pmd_mean(p, tau).lam, color=colour, label=f"τ = {tau:g}")
    axes[0].set(xscale="logit", yscale="log", ylim=(1e-7, 1e2), xlabel="p, success before the step", ylabel="λ (nats)")
    axes[0].set_xticks([1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.9999, 0.999999])
    axes[0].legend(loc="lower center", ncols=2)


def chi2_share(axes: Any) -> None:
    """Draw the share of the reward gap that the chi-square term absorbs, against p."""
    p = _success()
    for tau, colour in zip(TAUS, TAU_COLOURS, strict=True):
        axes[0].plot(p, binary_pmd_mean(p, tau).chi2_share, color=colour, label=f"τ = {tau:g}")
    _against_p(axes[0], "χ² share of the step", ylim=(0, 1))
    axes[0].legend(loc=(0.02, 0.28))


def mean_against_part(axes: Any) -> None:
    """Draw success after one exact step against success before it."""
    p = _success()
    for axis, tau in zip(axes, (0.05, 0.2, 1.0), strict=True):
        axis.plot(p, binary_pmd_mean(p, tau).success, color=MEAN_COLOUR, label="PMD-mean")
        axis.plot(p, binary_pmd_part(p, tau).success, color=PART_COLOUR, label="PMD-part", linestyle=(0, (4, 1.5)))
        axis.plot(p, p, color=INK, linewidth=0.8, label="no step")
        _against_p(axis, "success after one step" if tau == 0.05 else "", ylim=(0, 1.03))
        axis.set_title(f"τ = {tau:g}")
    axes[2].legend(loc="upper left")


def finite_noise(axes: Any) -> None:
    """Draw the standard deviation of the new log-odds over the draw of the rollouts."""
    p = torch.linspace(0.02, 0.94, 47, dtype=torch.float64)
    for axis, tau in zip(axes, (0.1, 0.3, 1.0), strict=True):
        for num_rollouts, style in ((16, "-"), (4, (0, (2, 2)))):
            for name, colour, method in (
                ("mean", MEAN_COLOUR, finite_pmd_mean),
                ("part", PART_COLOUR, finite_pmd_part),
            ):
                draw = method(p, tau, num_rollouts)
                axis.plot(p, draw.sd(draw.log_odds), color=colour, linestyle=style, label=f"{name}, n = {num_rollouts}")
        axis.set(title=f"τ = {tau:g}", xlabel="p, success before the step", ylim=(0, 1.4 * axis.get_ylim()[1]))
    axes[0].set_ylabel("SD of new log-odds (nats)")
    axes[0].legend(loc="upper center", ncols=2, columnspacing=1.0, handlelength=1.6)


def convergence(axes: Any) -> None:
    """Draw success after repeated exact steps, from one in ten thousand."""
    methods: tuple[tuple[str, Method, object], ...] = (("mean", pmd_mean, "-"), ("part", pmd_part, (0, (2, 2))))
    start = torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64)
    for tau, colour in zip(TAUS[1:], TAU_COLOURS[1:], strict=True):
        for name, method, style in methods:
            success = iterate(method, start, (1.0, 0.0), tau, 20).log_probs[:, 0].exp()
            axes[0].plot(success, color=colour, linestyle=style, marker=".", label=f"τ = {tau:g}, {name}")
    axes[0].set(xlabel="exact steps", ylabel="success", xlim=(0, 20), ylim=(0, 1.03))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(loc="lower right")


def loophole(axes: Any) -> None:
    """Draw the flow of probability as the baseline rises past the log-partition (tau = 0.3)."""
    tau, probs = 0.3, torch.tensor([1e-4, 0.3, 0.6999], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    edge = tau * float((probs.log() + rewards / tau).logsumexp(-1))
    above = torch.linspace(-0.4, 0.6, 201, dtype=torch.float64)
    step = pmd_baseline(probs, rewards, tau, edge + above)
    names = ("rare wrong answer, p = 0.0001", "correct answers, p = 0.3", "common wrong answers, p = 0.7")
    for index, (name, colour) in enumerate(zip(names, TAU_COLOURS, strict=False)):
        axes[0].plot(above, step.probs[:, index], color=colour, label=name)
    axes[0].axvline(0.0, color=INK, linewidth=0.8)
    axes[0].axvline(float((probs * rewards).sum()) - edge, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes[0].set(xlabel="baseline minus τ log Z (dashed: the mean)", ylabel="probability after the step", ylim=(0, 1.02))
    axes[0].legend(loc=(0.01, 0.4), handlelength=1.2)


FIGURES: dict[str, tuple[Callable[[Any], None], int]] = {
    "ratios": (ratios, 2),
    "lambda": (multiplier, 1),
    "chi2_share": (chi2_share, 1),
    "mean_against_part": (mean_against_part, 3),
    "loophole": (loophole, 1),
    "finite_noise": (finite_noise, 3),
    "convergence": (convergence, 1),
}


def _success(low: float = 1e-5, *, both_ends: bool = False) -> Tensor:
    """Space success probabilities evenly in log p, or in log-odds where both ends matter."""
    edge = torch.special.logit(torch.tensor(low, dtype=torch.float64)).item()
    if both_ends:
        return torch.sigmoid(torch.linspace(edge, -edge, 121, dtype=torch.float64))
    return torch.linspace(edge, -1e-3, 121, dtype=torch.float64).exp()


def _against_p(axis: Any, ylabel: str, yscale: str = "linear", ylim: tuple[float, float] = (0, 1)) -> None:
    axis.set(xscale="log", yscale=yscale, xlabel="p, success before the step", ylabel=ylabel, ylim=ylim, xlim=(1e-5, 1))
