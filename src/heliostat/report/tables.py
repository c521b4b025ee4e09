"""The page's tables: runs compared, tasks, the recipe with its changes marked, and versions.

Left out: prose, charts and transcripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from heliostat.config import Recipe, TaskSection
from heliostat.report.markup import Child, Html, element
from heliostat.report.outcome import against, last_evaluation, pass_at_1
from heliostat.report.phases import flops, seconds, tokens
from heliostat.report.read import Run
from heliostat.report.scales import format_quantity, format_seconds, format_value
from heliostat.report.verdict import Verdict, points
from heliostat.statistics import Estimate

ABSENT = "–"
PLACE = frozenset({"run.name", "run.root"})  # where the run is kept: says nothing about what was run


def comparison(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Html:
    """One row per run: what was run, what came out, what it cost."""
    versus = f"Against {runs[0].label}"
    head = ("Run", "Objective", "Steps", "pass@1 before", "pass@1 after", "Change", versus, "Time", "Tokens", "Compute")
    rows: list[Sequence[Child]] = []
    for index, (run, verdict) in enumerate(zip(runs, verdicts, strict=True)):
        result = verdict.outcome
        total = sum(seconds(run).values())
        rows.append(
            (
                [element("span", class_=f"key c{index % 6 + 1}"), run.label],
                objective(run),
                str(run.last_step),
                _rate(result.before),
                _rate(result.after),
                element("span", _change(result.change), class_=f"verdict-{verdict.kind}"),
                _change(against(run, runs[0])) if index else ABSENT,
                format_seconds(total) if total else ABSENT,
                format_value(tokens(run) or 0.0) if tokens(run) else ABSENT,
                format_quantity(sum(flops(run).values()), "FLOP") if flops(run) else ABSENT,
            )
        )
    return grid("Runs compared", head, rows)


def differences(runs: Sequence[Run]) -> Html | None:
    """The settings in which the runs differ, or ``None`` where they differ in none."""
    flat = [dict(flatten(run.recipe)) for run in runs]
    keys = sorted({key for settings in flat for key in settings} - PLACE)
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in flat}) > 1]
    if not differing:
        return None
    rows = [(element("code", key), *(_value(settings.get(key)) for settings in flat)) for key in differing]
    return grid("Settings that differ", ("Setting", *(run.label for run in runs)), rows)


def by_task(run: Run) -> Html | None:
    """pass@1 per task before and after, for runs on more than one task."""
    tasks = sorted({row.task for row in run.evaluations})
    if len(tasks) < 2:
        return None
    rows: list[Sequence[Child]] = []
    for task in tasks:
        first = [row for row in run.evaluations if row.phase == "before" and row.task == task]
        last = [row for row in last_evaluation(run) if row.task == task]
        rows.append((task, _rate(pass_at_1(first)), _rate(pass_at_1(last))))
    return grid(f"pass@1 by task: {run.label}", ("Task", "Before", "After"), rows)


def recipe_table(run: Run) -> Html:
    """Settings that differ from the defaults, in the open; all settings behind a click, with what they mean."""
    if not run.recipe:
        return element("p", "This run folder holds no readable recipe.", class_="note")
    defaults, meanings = _defaults(run.recipe)
    settings = [(key, value) for key, value in flatten(run.recipe) if key not in PLACE]
    changed = [(key, value) for key, value in settings if key not in defaults or defaults[key] != value]
    rows = [
        (_setting(key, meanings), element("strong", _value(value)), _value(defaults.get(key))) for key, value in changed
    ]
    everything = [
        (_setting(key, meanings), element("mark", _value(value)) if (key, value) in changed else _value(value))
        for key, value in settings
    ]
    return element(
        "div",
        grid("Changed settings", ("Setting", "This run", "Default"), rows)
        if rows
        else element("p", "Every setting has its default value.", class_="note"),
        element(
            "details",
            element("summary", f"All {len(settings)} settings"),
            grid("All settings", ("Setting", "Value"), everything),
        ),
    )


def versions_table(runs: Sequence[Run]) -> Html | None:
    """Versions and machine, one column per run."""
    keys = list(dict.fromkeys(key for run in runs for key in run.versions))
    if not keys:
        return None
    rows = [(key, *(_value(run.versions.get(key)) for run in runs)) for key in keys]
    return grid("Versions and machine", ("", *(run.label for run in runs)), rows)


def grid(name: str, head: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    """A table that scrolls sideways by itself where the screen is narrower than it."""
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]]) for row in rows
    ]
    table = element(
        "table",
        element("thead", element("tr", [element("th", cell, scope="col") for cell in head])),
        element("tbody", body),
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def objective(run: Run) -> str:
    """The objective's name with its temperature where it has one."""
    name, tau = run.setting("objective.name"), run.setting("objective.tau")
    return f"{name or ABSENT}" + (f", τ = {tau:g}" if isinstance(tau, int | float) else "")


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted.key, value)`` for every leaf; lists of tables are numbered, other lists are leaves."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(settings, list | tuple) and settings and all(isinstance(item, Mapping) for item in settings):
        for index, item in enumerate(settings):
            yield from flatten(item, f"{prefix}.{index}")
    else:
        yield prefix, list(settings) if isinstance(settings, tuple) else settings


def _setting(key: str, meanings: Mapping[str, str]) -> Html:
    meaning = meanings.get(key)
    return element("div", element("code", key), element("small", meaning) if meaning else None, class_="setting")


def _rate(rate: Estimate | None) -> Child:
    return _with_interval(rate, partial(format_value, unit="fraction")) if rate else ABSENT


def _change(change: Estimate | None) -> Child:
    return _with_interval(change, points) if change else ABSENT


def _with_interval(estimate: Estimate, write: Callable[[float], str]) -> Child:
    return [write(estimate.value), element("small", f"{write(estimate.low)} to {write(estimate.high)}")]


def _defaults(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Default and meaning of every declared setting; each task of the recipe has the defaults of one task."""
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
