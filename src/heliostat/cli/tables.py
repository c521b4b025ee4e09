"""How results look on a terminal: tables by rich, plain text where the output is a file or a pipe.

Left out: where the numbers come from, and the live display of a run (``train.progress``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from heliostat.tracking import Metric
    from heliostat.train import EvalReport, Evaluation
    from heliostat.types import Group

PLAIN_WIDTH = 200  # columns where nobody has a terminal to say how many there are


def console() -> Console:
    """The terminal, or a wide plain page where there is none."""
    terminal = Console(highlight=False, soft_wrap=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def print_recipes(texts: Mapping[str, str]) -> None:
    """Names of recipes with the comment that each begins with."""
    table = _table("recipe", "what it does")
    for name, text in texts.items():
        table.add_row(name, text.partition("\n")[0].removeprefix("#").strip())
    console().print(table)


def print_metrics(metrics: Mapping[str, Metric]) -> None:
    """The glossary of metrics."""
    table = _table("metric", "unit", "meaning")
    for key, metric in metrics.items():
        table.add_row(key, metric.unit, Text(metric.meaning))
    console().print(table)


def print_evaluations(report: EvalReport) -> None:
    """One row per model and task with 95% intervals over problems, and the paired difference of two models."""
    shared = min((evaluation.ks[-1] for evaluation in report.evaluations), default=1)
    greedy = any(evaluation.greedy is not None for evaluation in report.evaluations)
    columns = ["model", "task", "problems", "pass@1 [95%]", f"pass@{shared}", "mean reward", "greedy"]
    table = _table(*columns[: 7 if greedy else 6])
    for model, evaluation in zip(report.models, report.evaluations, strict=True):
        parts = evaluation.by_task()
        rows = parts | {"all": evaluation} if len(parts) > 1 else parts
        for task, part in rows.items():
            table.add_row(model, task, *_evaluation_cells(part, shared)[: 5 if greedy else 4])
    console().print(table)


def _evaluation_cells(evaluation: Evaluation, k: int) -> list[str]:
    low, high = evaluation.ci95
    return [
        str(len(evaluation.results)),
        f"{evaluation.pass_at_1:.1%} [{low:.1%}, {high:.1%}]",
        f"{evaluation.pass_at(k):.1%}",
        f"{evaluation.mean_reward:.3f}",
        "" if evaluation.greedy is None else f"{evaluation.greedy:.1%}",
    ]


def print_completions(groups: Sequence[Group]) -> None:
    """Prompts, each followed by its completions as they were sampled; model text is never read as markup."""
    page = console()
    for group in groups:
        page.print(Text(group.prompt.problem.question, style="bold"))
        for number, completion in enumerate(group.completions):
            verdict = f", reward {group.verdicts[number].reward:g}" if group.verdicts else ""
            page.print(Text(f"--- {len(completion.token_ids)} tokens, {completion.stop_reason}{verdict}", style="dim"))
            page.print(Text(completion.text))
        page.print()


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0, style="bold" if position == 0 else "")
    return table
