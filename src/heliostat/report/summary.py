"""The top of the page: what was run, what came of it in one sentence, and the numbers people ask for first.

Left out: charts, transcripts and settings (``sections``).
"""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.report.markup import Html, element
from heliostat.report.outcome import pass_curve
from heliostat.report.phases import flops, seconds, tokens
from heliostat.report.read import Run, number
from heliostat.report.scales import format_seconds, format_value
from heliostat.report.series import ends
from heliostat.report.tables import comparison, differences, objective
from heliostat.report.verdict import Verdict, percent
from heliostat.statistics import Estimate


def heading(runs: Sequence[Run]) -> Html:
    """The page's title and, for one run, what was run in one line of facts."""
    if len(runs) > 1:
        return element(
            "header", element("p", "Run report", class_="eyebrow"), element("h1", f"{len(runs)} runs compared")
        )
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
    shown = [
        element("div", element("dt", name), element("dd", str(value)))
        for name, value in facts.items()
        if value not in (None, "")
    ]
    return element(
        "header",
        element("p", "Run report", class_="eyebrow"),
        element("h1", run.label),
        element("dl", shown, class_="facts-list"),
    )


def verdict_section(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Html:
    """The judgement in words beside before and after drawn with their intervals."""
    if len(runs) > 1:
        return _comparison(runs, verdicts)
    verdict = verdicts[0]
    result = verdict.outcome
    after = "after" if result.final else f"step {result.last_step}"
    rows = [
        _interval_row(name, [(estimate, css)], format_value(estimate.value, "fraction"))
        for name, estimate, css in (("before", result.before, "c6"), (after, result.after, "c1"))
        if estimate is not None
    ]
    words = element(
        "div",
        element("h2", verdict.headline),
        element("p", verdict.sentence),
        element("p", verdict.ending, class_="ending"),
        class_="words",
    )
    return element(
        "section", words, _interval_plot(rows), class_=f"verdict card is-{verdict.kind}", aria_label="Verdict"
    )


def cards(run: Run, verdict: Verdict) -> Html:
    """The numbers that people ask for first."""
    result = verdict.outcome
    reward = ends(run.series("reward/mean"))
    total, compute, sampled = sum(seconds(run).values()), sum(flops(run).values()), tokens(run)
    items = [
        _pass_card("Held-out pass@1", result.before, result.after),
        _pass_k_card(run),
        _greedy_card(run),
        _card("Training reward", format_value(reward[1]), f"from {format_value(reward[0])} at first")
        if reward
        else None,
        _card("Wall time", format_seconds(total), "all phases") if total else None,
        _card("Tokens sampled", format_value(sampled), "for training") if sampled else None,
        _card("Compute", format_value(compute), "floating-point operations") if compute else None,
    ]
    return element("section", items, class_="cards", aria_label="Key numbers")


def _comparison(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Html:
    rows = []
    for index, (run, verdict) in enumerate(zip(runs, verdicts, strict=True)):
        result = verdict.outcome
        marks = [(e, css) for e, css in ((result.before, "c6"), (result.after, f"c{index % 6 + 1}")) if e]
        text = format_value(result.after.value, "fraction") if result.after else "–"
        rows.append(_interval_row(run.label, marks, text))
    lines = [
        element("li", element("strong", run.label), f": {verdict.headline.lower()}. {verdict.ending}")
        for run, verdict in zip(runs, verdicts, strict=True)
    ]
    note = "pass@1 on held-out problems; changes are percentage points with their 95% interval, paired over problems."
    differing = differences(runs)
    return element(
        "section",
        element(
            "div", element("h2", "Before (grey) and after"), _interval_plot(rows), element("ul", lines), class_="card"
        ),
        element(
            "div",
            element("h2", "Side by side"),
            comparison(runs, verdicts),
            element("p", note, class_="note"),
            class_="card",
        ),
        element("div", element("h2", "Settings that differ"), differing, class_="card") if differing else None,
        class_="comparison",
        aria_label="Comparison",
    )


def _interval_row(name: str, marks: Sequence[tuple[Estimate, str]], text: str) -> Html:
    drawn = [element("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track")]
    for estimate, css in marks:
        low, value, high = (
            f"{100 * min(1, max(0, end)):.2f}%" for end in (estimate.low, estimate.value, estimate.high)
        )
        drawn.append(element("line", x1=low, x2=high, y1="50%", y2="50%", class_=f"interval {css}"))
        drawn.append(element("circle", cx=value, cy="50%", r="6", class_=f"mark {css}"))
    label = "; ".join(percent(estimate) for estimate, _ in marks) or "not measured"
    plot = element("svg", drawn, width="100%", height="22", role="img", aria_label=f"{name}: {label}")
    return element("div", element("span", name, class_="name"), plot, element("strong", text), class_="row")


def _interval_plot(rows: Sequence[Html]) -> Html | None:
    if not rows:
        return None
    axis = element("p", [element("span", label) for label in ("0%", "50%", "100%")], class_="axis")
    return element("div", rows, axis, class_="intervals")


def _card(name: str, value: str, detail: str) -> Html:
    return element(
        "div",
        element("p", name, class_="name"),
        element("p", value, class_="value"),
        element("p", detail, class_="detail"),
        class_="card",
    )


def _pass_card(name: str, before: Estimate | None, after: Estimate | None) -> Html | None:
    if after is None:
        return None
    detail = f"from {format_value(before.value, 'fraction')} before" if before else "no evaluation before"
    return _card(name, format_value(after.value, "fraction"), detail)


def _pass_k_card(run: Run) -> Html | None:
    before, after = (
        dict(pass_curve([row for row in run.evaluations if row.phase == phase])) for phase in ("before", "after")
    )
    k = max(after, default=1)
    return _pass_card(f"Held-out pass@{k}", before.get(k), after[k]) if k > 1 else None


def _greedy_card(run: Run) -> Html | None:
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
