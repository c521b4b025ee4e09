"""The top of the page: facts about the run, its result in one sentence, and the numbers that people ask for first.

Left out: charts, transcripts and settings (``sections``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.report.charts.scales import format_seconds, format_value
from heliostat.report.charts.series import ends
from heliostat.report.html.markup import NUM_COLOURS, Html, fill
from heliostat.report.runs.outcome import pass_curve
from heliostat.report.runs.phases import flops, seconds, tokens
from heliostat.report.runs.read import Run, number
from heliostat.report.sections.tables import comparison, differences, objective
from heliostat.report.sections.verdict import RunVerdict, percent
from heliostat.statistics import Estimate


def heading(runs: Sequence[Run]) -> Html:
    """Write the page's title and, for one run, the facts about it in one line."""
    if len(runs) > 1:
        return fill("heading.html", kind="Run report", title=f"{len(runs)} runs compared", facts={})
    run = runs[0]
    tasks = run.setting("task", default=[])
    names = [task.get("name", "") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    rollout = run.setting("rollout.prompts_per_step"), run.setting("rollout.group_size")
    facts = {
        "Model": run.setting("model.path"),
        "Task": ", ".join(name.removeprefix("reasoning-gym/") for name in names),
        "Objective": objective(run) if run.recipe else None,
        "Steps": f"{run.last_step} of {run.setting('train.num_steps')}" if run.recipe else run.last_step,
        "Batch": f"{rollout[0]} problems × {rollout[1]} answers" if all(rollout) else None,
        "Seed": run.setting("run.seed"),
        "Machine": _machine(run),
    }
    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    return fill("heading.html", kind="Run report", title=run.label, facts=shown)


def verdict_section(runs: Sequence[Run], verdicts: Sequence[RunVerdict]) -> Html:
    """Write the judgement in words, with the rates before and after drawn with their intervals."""
    if len(runs) > 1:
        return _comparison(runs, verdicts)
    verdict = verdicts[0]
    result = verdict.outcome
    after = "after" if result.final else f"step {result.last_step}"
    rows = [
        _IntervalRow.of(name, [(estimate, css)], format_value(estimate.value, "fraction"))
        for name, estimate, css in (("before", result.before, "c6"), (after, result.after, "c1"))
        if estimate is not None
    ]
    return fill("verdict.html", verdict=verdict, rows=rows)


def cards(run: Run, verdict: RunVerdict) -> Html:
    """Write the numbers that people ask for first."""
    result = verdict.outcome
    reward = ends(run.series("reward/mean"))
    total, compute, sampled = sum(seconds(run).values()), sum(flops(run).values()), tokens(run)
    items = [
        _pass_card("Held-out pass@1", result.before, result.after),
        _pass_k_card(run),
        _greedy_card(run),
        _Card("Training reward", format_value(reward[1]), f"from {format_value(reward[0])} at first")
        if reward
        else None,
        _Card("Wall time", format_seconds(total), "all phases") if total else None,
        _Card("Tokens sampled", format_value(sampled), "for training") if sampled else None,
        _Card("Compute", format_value(compute), "floating-point operations") if compute else None,
    ]
    return fill("cards.html", cards=[item for item in items if item])


def _comparison(runs: Sequence[Run], verdicts: Sequence[RunVerdict]) -> Html:
    judged = list(zip(runs, verdicts, strict=True))
    rows = []
    for index, (run, verdict) in enumerate(judged):
        result = verdict.outcome
        marks = [(e, css) for e, css in ((result.before, "c6"), (result.after, f"c{index % NUM_COLOURS + 1}")) if e]
        text = format_value(result.after.value, "fraction") if result.after else "–"
        rows.append(_IntervalRow.of(run.label, marks, text))
    table, differing = comparison(runs, verdicts), differences(runs)
    return fill("comparison.html", judged=judged, rows=rows, table=table, differing=differing)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A rate with its interval, as places on an axis from 0% to 100%."""

    low: str
    value: str
    high: str
    css: str


@dataclass(frozen=True, slots=True)
class _IntervalRow:
    """Rates drawn with their intervals behind a name."""

    name: str
    label: str
    marks: Sequence[_Mark]
    text: str

    @classmethod
    def of(cls, name: str, estimates: Sequence[tuple[Estimate, str]], text: str) -> _IntervalRow:
        marks = [_Mark(_place(one.low), _place(one.value), _place(one.high), css) for one, css in estimates]
        label = "; ".join(percent(one) for one, _ in estimates) or "not measured"
        return cls(name, label, marks, text)


def _place(rate: float) -> str:
    return f"{100 * min(1, max(0, rate)):.2f}%"


@dataclass(frozen=True, slots=True)
class _Card:
    """A number with its name and where it came from."""

    name: str
    value: str
    detail: str


def _pass_card(name: str, before: Estimate | None, after: Estimate | None) -> _Card | None:
    if after is None:
        return None
    detail = f"from {format_value(before.value, 'fraction')} before" if before else "no evaluation before"
    return _Card(name, format_value(after.value, "fraction"), detail)


def _pass_k_card(run: Run) -> _Card | None:
    before, after = (
        dict(pass_curve([row for row in run.evaluations if row.phase == phase])) for phase in ("before", "after")
    )
    k = max(after, default=1)
    return _pass_card(f"Held-out pass@{k}", before.get(k), after[k]) if k > 1 else None


def _greedy_card(run: Run) -> _Card | None:
    rates: list[Estimate | None] = []
    for phase in ("before", "after"):
        marks = [row.greedy_success for row in run.evaluations if row.phase == phase and row.greedy_success is not None]
        stated = number(run.summary, phase, "greedy")
        rate = stated if stated is not None else sum(marks) / len(marks) if marks else None
        rates.append(Estimate(rate, rate, rate) if rate is not None else None)
    return _pass_card("Greedy decoding", rates[0], rates[1])


def _machine(run: Run) -> str:
    cpu = run.versions.get("cpu") or run.versions.get("platform") or ""
    num_threads = str(run.versions.get("num_threads") or "")
    threads = f"{num_threads} thread{'s' * (num_threads != '1')}" if num_threads else ""
    return ", ".join(part for part in (str(cpu), threads) if part)
