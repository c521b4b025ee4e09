"""The page's tables: runs compared, tasks, the recipe with its changes marked, and versions.

Left out: prose, charts and transcripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from heliostat.config import Recipe, TaskSection
from heliostat.report.charts.scales import format_quantity, format_seconds, format_value
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.outcome import against, last_evaluation, pass_at_1
from heliostat.report.runs.phases import flops, seconds, tokens
from heliostat.report.runs.read import Run
from heliostat.report.sections.verdict import RunVerdict, points
from heliostat.statistics import Estimate

ABSENT = "–"
PLACE = frozenset({"run.name", "run.root"})  # the place of the run's folder has no effect on the run


def comparison(runs: Sequence[Run], verdicts: Sequence[RunVerdict]) -> Html:
    """Compare runs, a row each: settings, results and costs."""
    rows = []
    for index, (run, verdict) in enumerate(zip(runs, verdicts, strict=True)):
        result = verdict.outcome
        total = sum(seconds(run).values())
        rows.append(
            {
                "label": run.label,
                "objective": objective(run),
                "num_steps": run.last_step,
                "before": _rate(result.before),
                "after": _rate(result.after),
                "kind": verdict.kind,
                "change": _change(result.change),
                "against": _change(against(run, runs[0]) if index else None),
                "time": format_seconds(total) if total else ABSENT,
                "tokens": format_value(tokens(run) or 0.0) if tokens(run) else ABSENT,
                "compute": format_quantity(sum(flops(run).values()), "FLOP") if flops(run) else ABSENT,
            }
        )
    return fill("runs_compared.html", rows=rows)


def differences(runs: Sequence[Run]) -> Html | None:
    """List the settings in which the runs differ; ``None`` where they differ in none."""
    flat = [dict(flatten(run.recipe)) for run in runs]
    keys = sorted({key for settings in flat for key in settings} - PLACE)
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in flat}) > 1]
    if not differing:
        return None
    rows = [(key, *(_value(settings.get(key)) for settings in flat)) for key in differing]
    head = ("Setting", *(run.label for run in runs))
    return fill("settings_grid.html", name="Settings that differ", head=head, rows=rows)


def by_task(run: Run) -> Html | None:
    """List pass@1 per task before and after, for runs on more than one task."""
    tasks = sorted({row.task for row in run.evaluations})
    if len(tasks) < 2:
        return None
    rows = []
    for task in tasks:
        first = [row for row in run.evaluations if row.phase == "before" and row.task == task]
        last = [row for row in last_evaluation(run) if row.task == task]
        rows.append((task, _rate(pass_at_1(first)), _rate(pass_at_1(last))))
    return fill("tasks.html", label=run.label, rows=rows)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A setting of a recipe, as text."""

    key: str
    value: str
    default: str
    meaning: str
    is_changed: bool


def recipe_table(run: Run) -> Html:
    """List the settings that differ from the defaults in the open, and all of them behind a click."""
    if not run.recipe:
        return fill("no_recipe.html")
    defaults, meanings = _defaults(run.recipe)
    settings = [
        _Setting(
            key,
            _value(value),
            _value(defaults.get(key)),
            meanings.get(key, ""),
            key not in defaults or defaults[key] != value,
        )
        for key, value in flatten(run.recipe)
        if key not in PLACE
    ]
    return fill("recipe.html", settings=settings, changed=[setting for setting in settings if setting.is_changed])


def versions_table(runs: Sequence[Run]) -> Html | None:
    """List versions and machine, one column per run."""
    keys = list(dict.fromkeys(key for run in runs for key in run.versions))
    if not keys:
        return None
    rows = [(key, *(_value(run.versions.get(key)) for run in runs)) for key in keys]
    return fill("grid.html", name="Versions and machine", head=("", *(run.label for run in runs)), rows=rows)


def objective(run: Run) -> str:
    """Return the objective's name with its temperature where it has one, or the distance to a teacher alone."""
    if (run.setting("teacher.path") or run.setting("teacher.url")) and run.setting("teacher.alone"):
        return f"teacher, {run.setting('teacher.kind')}"
    name, tau = run.setting("objective.name"), run.setting("objective.tau")
    return f"{name or ABSENT}" + (f", τ = {tau:g}" if isinstance(tau, int | float) else "")


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted.key, value)`` for every leaf; lists of tables are numbered, other lists are leaves."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(settings, list | tuple) and settings and all(isinstance(item, Mapping) for item in settings):
        for index, item in enumerate(settings):
            yield from flatten(item, f"{prefix}.{index}")
    else:
        yield prefix, list(settings) if isinstance(settings, tuple) else settings


@dataclass(frozen=True, slots=True)
class EstimateCell:
    """A cell of a table: an estimate as text, and its interval where there is one."""

    value: str
    interval: str = ""

    @classmethod
    def of(cls, estimate: Estimate | None, write: Callable[[float], str]) -> EstimateCell:
        """Write an estimate with its interval; a dash where it was not measured."""
        if estimate is None:
            return cls(ABSENT)
        return cls(write(estimate.value), f"{write(estimate.low)} to {write(estimate.high)}")


def _rate(rate: Estimate | None) -> EstimateCell:
    return EstimateCell.of(rate, partial(format_value, unit="fraction"))


def _change(change: Estimate | None) -> EstimateCell:
    return EstimateCell.of(change, points)


def _defaults(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return default and meaning of every declared setting; each task of the recipe has the defaults of one task."""
    defaults = dict(flatten(Recipe().model_dump()))
    meanings = {
        f"{section}.{key}": spec.description or ""
        for section, field in Recipe.model_fields.items()
        for key, spec in getattr(field.annotation, "model_fields", {}).items()
    }
    tasks = recipe.get("task")
    for index in range(len(tasks) if isinstance(tasks, list) else 0):
        for key, spec in TaskSection.model_fields.items():
            defaults[f"task.{index}.{key}"] = spec.default
            meanings[f"task.{index}.{key}"] = spec.description or ""
    return defaults, meanings


def _value(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value not in ("", [], {}) else "empty"
