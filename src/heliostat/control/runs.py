"""The run folder of ``heliostat control``: its files, and reading them without heavy imports.

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

SETTINGS, EVALUATIONS, PAGE, MODELS = "control.json", "laps.jsonl", "control.html", "models"


@dataclass(frozen=True, slots=True)
class ControlRun:
    """The contents of a run folder.

    Attributes:
        evaluations: rows of every algorithm and seed, in the order of steps.
    """

    folder: Path
    about: dict[str, Any]
    evaluations: dict[tuple[str, int], list[dict[str, float]]]

    @property
    def algos(self) -> list[str]:
        """Algorithms with at least one row, in the order of the command."""
        return [algo for algo in self.about["algos"] if any(name == algo for name, _ in self.evaluations)]

    def of(self, algo: str) -> list[list[dict[str, float]]]:
        """List the rows of each seed of one algorithm."""
        return [rows for (name, _), rows in self.evaluations.items() if name == algo]

    def curve(self, algo: str, x: str = "step", y: str = "return") -> list[tuple[float, Estimate]]:
        """Average ``y`` at ``x`` (its median over seeds): interquartile mean over seeds, for each evaluation."""
        seeds = self.of(algo)
        points = []
        for rows in zip(*seeds, strict=False):
            at = sorted(row[x] for row in rows)[len(rows) // 2]
            values = [row[y] for row in rows if y in row]
            if values:
                points.append((at, interquartile_estimate(values)))
        return points

    def final(self, algo: str) -> Estimate:
        """Compute the interquartile mean over seeds of the last quarter of evaluations."""
        return interquartile_estimate([last_quarter(rows) for rows in self.of(algo)])


def last_quarter(rows: Sequence[dict[str, float]]) -> float:
    """Average the return over the last quarter of a seed's evaluations: its final level, not its best."""
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
    evaluations: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in read_metrics(folder / EVALUATIONS):
        algo, seed = row.pop("algo"), row.pop("seed")
        evaluations.setdefault((algo, seed), []).append(row)
    return ControlRun(folder, about, evaluations)
