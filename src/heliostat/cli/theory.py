"""``heliostat theory plot``: draws the exact figures, and on request measured steps over them.

Left out: the drawing (``theory``).
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.theory import MeasuredStep

TAU, SAME_STEP = "objective.tau", ("pmd-mean", "kimi-k2")
_FIELDS = {
    "tau": TAU,
    "success": "reward/success",
    "lam": "policy/lambda_hat",
    "log_ratio_correct": "policy/log_ratio_correct",
    "log_ratio_incorrect": "policy/log_ratio_incorrect",
}


def plot_theory(args: Namespace) -> int:
    """Run ``heliostat theory plot``: draw ratios, lambda, chi-square share and the other figures as SVG files."""
    from heliostat.theory import draw_all

    steps = read_measured(args.measured) if args.measured else []
    for path in draw_all(args.folder):
        print(path)
    if steps:
        from heliostat.theory import draw_measured

        print(draw_measured(steps, args.folder))
    return 0


def read_measured(path: Path) -> list[MeasuredStep]:
    """Read measured steps from a run folder, or from a JSONL file whose keys are metrics and ``objective.tau``.

    Steps without both correct and incorrect answers have no place on the curves and are left out.

    Raises:
        ConfigError: the path is neither, the run is of another objective, or it holds no step that can be drawn.
    """
    from heliostat.config import ConfigError
    from heliostat.theory import MeasuredStep

    lines = _run_lines(path) if path.is_dir() else _file_lines(path)
    found = ({name: line[key] for name, key in _FIELDS.items() if line.get(key) is not None} for line in lines)
    whole = [MeasuredStep(**step) for step in found if len(step) == len(_FIELDS)]
    steps = [step for step in whole if 0 < step.success < 1]
    if not steps:
        raise ConfigError(f"{path} holds no step with {', '.join(_FIELDS.values())} and both right and wrong answers")
    return steps


def _run_lines(folder: Path) -> Iterator[Mapping[str, Any]]:
    from heliostat.config import ConfigError
    from heliostat.report.runs.read import read_run

    run = read_run(folder)
    name = run.setting("objective.name")
    if name not in SAME_STEP:
        raise ConfigError(f"the exact curves are those of {' and '.join(SAME_STEP)}; {folder} trained with '{name}'")
    yield from ({**line, TAU: run.setting(TAU)} for line in run.metrics)


def _file_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    from heliostat.config import ConfigError

    if not path.is_file():
        raise ConfigError(f"--measured {path}: neither a run folder nor a file of JSON lines")
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise ConfigError(f"{path}, line {number}: not a JSON object") from None
        yield line
