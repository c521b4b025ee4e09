"""The run folder of ``heliostat control``: what is in it, and reading it. Nothing heavy is needed for that.

    control.json   environment, algorithms, seeds, steps, settings, versions
    laps.jsonl     one line per evaluation: algo, seed, step, return, train_return, cpu_s, update_s, num_updates
    control.html   the page
    models/        the trained policies, as Stable-Baselines3 saves them

Left out: running (``race``), and the page (``heliostat.report.control_page``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.statistics import Estimate, interquartile_estimate
from heliostat.tracking import read_metrics

SETTINGS, LAPS, PAGE, MODELS = "control.json", "laps.jsonl", "control.html", "models"


@dataclass(frozen=True, slots=True)
class ControlRun:
    """A run folder as it was read.

    Attributes:
        laps: rows of every algorithm and seed, in the order of steps.
    """

    folder: Path
    about: dict[str, Any]
    laps: dict[tuple[str, int], list[dict[str, float]]]

    @property
    def algos(self) -> list[str]:
        """Algorithms with at least one row, in the order they were asked for."""
        return [algo for algo in self.about["algos"] if any(name == algo for name, _ in self.laps)]

    def of(self, algo: str) -> list[list[dict[str, float]]]:
        """The rows of each seed of one algorithm."""
        return [rows for (name, _), rows in self.laps.items() if name == algo]

    def curve(self, algo: str, x: str = "step", y: str = "return") -> list[tuple[float, Estimate]]:
        """``y`` over ``x`` (its median over seeds): interquartile mean over seeds, evaluation by evaluation."""
        seeds = self.of(algo)
        points = []
        for rows in zip(*seeds, strict=False):
            at = sorted(row[x] for row in rows)[len(rows) // 2]
            values = [row[y] for row in rows if y in row]
            if values:
                points.append((at, interquartile_estimate(values)))
        return points

    def final(self, algo: str) -> Estimate:
        """Interquartile mean over seeds of the last quarter of evaluations."""
        return interquartile_estimate([last_quarter(rows) for rows in self.of(algo)])


def last_quarter(rows: Sequence[dict[str, float]]) -> float:
    """Mean return over the last quarter of a seed's evaluations: where it ends, not its best."""
    returns = [row["return"] for row in rows[-max(1, len(rows) // 4) :]]
    return sum(returns) / len(returns)


def read_control(folder: Path) -> ControlRun:
    """Read a run folder.

    Raises:
        ValueError: it is not one.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} is not a folder of heliostat control: it has no {SETTINGS}")
    about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    laps: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in read_metrics(folder / LAPS):
        algo, seed = row.pop("algo"), row.pop("seed")
        laps.setdefault((algo, seed), []).append(row)
    return ControlRun(folder, about, laps)
