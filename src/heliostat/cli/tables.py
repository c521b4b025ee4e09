"""Results on a terminal: tables by rich, plain text if the output is a file or a pipe.

Left out: computing results, and the live display of a run (``train.console.progress``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text as RichText

from heliostat.printed import visible, visible_line
from heliostat.terminal import SafeConsole

if TYPE_CHECKING:
    from heliostat.control.runs import ControlRun
    from heliostat.harness import HarnessReport
    from heliostat.traces import BankSummary, Trace
    from heliostat.tracking import Metric
    from heliostat.train import EvalReport, Evaluation, RunResult, SampledConversations
    from heliostat.types import Group, Turn


def Text(text: str, style: str = "") -> RichText:
    """Make text that is never read as markup; hidden characters are shown, since rich drops some of them silently."""
    return RichText(visible(text), style=style)


PLAIN_WIDTH = 200  # columns if the output is not a terminal


class Page(SafeConsole):
    """The terminal, or a wide page of plain text if the output is no terminal."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = PLAIN_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; without a terminal, lines are not padded."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip() for line in lines))

    def on_broken_pipe(self) -> None:
        """Leave a broken pipe to ``entry.main``; rich itself would end the process with an error."""
        raise BrokenPipeError


def print_lines(what: str, lines: Mapping[str, str]) -> None:
    """Print names, each with one line about it."""
    table = _table(what, "")
    for name, line in lines.items():
        table.add_row(name, Text(line))
    Page().print(table)


def print_metrics(metrics: Mapping[str, Metric]) -> None:
    """Print the glossary of metrics."""
    table = _table("metric", "unit", "meaning")
    for key, metric in metrics.items():
        table.add_row(key, metric.unit, Text(metric.meaning))
    Page().print(table)


def print_evaluations(report: EvalReport) -> None:
    """Print one row per model and task with 95% intervals over problems, and the paired difference of two models."""
    k = min(evaluation.ks[-1] for evaluation in report.evaluations)
    table = _table("model", "task", "problems", "pass@1 [95%]", f"pass@{k}", "mean reward", "greedy")
    for model, evaluation in zip(report.models, report.evaluations, strict=True):
        parts = evaluation.by_task()
        for task, part in (parts | {"all": evaluation} if len(parts) > 1 else parts).items():
            table.add_row(*map(Text, (model, task, *_cells(part, k))))
    page = Page()
    page.print(table)
    page.print(f"weights in {' and '.join(dict.fromkeys(report.dtypes))}", markup=False)
    if (pair := report.comparison) is not None:
        low, high = pair.ci95
        page.print(
            f"second minus first on {pair.num_problems} shared problems: {pair.difference:+.1%} pass@1, 95% interval "
            f"[{low:+.1%}, {high:+.1%}]: " + ("they differ" if pair.significant else "no difference shown"),
            markup=False,
        )
        page.print(
            f"problems with a solution from the second model only: {pair.num_only_second}; from the first only: "
            f"{pair.num_only_first}",
            markup=False,
        )


def _cells(evaluation: Evaluation, k: int) -> list[str]:
    greedy = "-" if evaluation.greedy is None else f"{evaluation.greedy:.1%}"
    return [
        str(len(evaluation.results)),
        _with_interval(evaluation),
        f"{evaluation.pass_at(k):.1%}",
        f"{evaluation.mean_reward:.3f}",
        greedy,
    ]


def _with_interval(evaluation: Evaluation) -> str:
    low, high = evaluation.ci95
    return f"{evaluation.pass_at_1:.1%} [{low:.1%}, {high:.1%}]"


def print_harness_report(report: HarnessReport) -> None:
    """Print one row per task and metric of lm-evaluation-harness, and the versions that gave them."""
    table = _table("task", "filter", "metric", "value", "standard error", "problems")
    for score in report.scores():
        stderr = "-" if score.stderr is None else f"{score.stderr:.4f}"
        count = "-" if score.num_samples is None else str(score.num_samples)
        table.add_row(*map(Text, (score.task, score.filter, score.metric, f"{score.value:.4f}", stderr, count)))
    page = Page()
    page.print(table)
    page.print(f"{report.model}, by lm-eval {report.version}", markup=False)


def print_outcome(result: RunResult, transcripts: Sequence[Mapping[str, Any]], report: Path) -> None:
    """Print a run's results, a few of its final completions, and the paths of its files."""
    page = Page()
    if transcripts:
        page.print(f"\n{len(transcripts)} of the final model's answers:")
    for row in transcripts:
        mark = "solved" if row["success"] else "not solved"
        page.print(Text(f"\n{row['prompt']}", style="bold"))
        page.print(Text(row["completion"]))
        page.print(Text(f"({mark}; answer: {row['answer']})", style="dim"))
    lines = {
        "held-out pass@1 before": result.before and _with_interval(result.before),
        "held-out pass@1 after": result.after and _with_interval(result.after),
        "run folder": str(result.folder),
        "report": str(report),
        "model": str(result.folder / "model") if result.status == "finished" else None,
    }
    page.print()
    for what, value in lines.items():
        if value:
            page.print(f"{what:<24}{value}", markup=False, soft_wrap=True)
    for finding in result.findings:
        page.print(f"{'finding':<24}{visible_line(finding)}", markup=False, soft_wrap=True)


def print_completions(groups: Sequence[Group]) -> None:
    """Print prompts, each followed by its completions as they were sampled; model text is never read as markup."""
    page = Page()
    for group in groups:
        page.print(Text(group.prompt.problem.question, style="bold"))
        for number, completion in enumerate(group.completions):
            verdict = f", reward {group.verdicts[number].reward:g}" if group.verdicts else ""
            page.print(Text(f"--- {len(completion.token_ids)} tokens, {completion.stop_reason}{verdict}", style="dim"))
            page.print(Text(completion.text))
        page.print()


def print_conversations(sampled: Sequence[SampledConversations]) -> None:
    """Print prompts, each followed by its trajectories turn by turn; texts of either side are never read as markup."""
    page = Page()
    for one in sampled:
        page.print(Text(one.prompt, style="bold"))
        if one.group.is_empty:
            page.print(Text("--- every episode failed in its environment", style="dim"))
        for completion, conversation in zip(one.group.completions, one.conversations, strict=True):
            num_turns, reason = len(completion.turns), completion.stop_reason
            page.print(Text(f"--- {num_turns} turns, {completion.num_sampled} sampled tokens, {reason}", style="dim"))
            for said in conversation:
                reward = "" if said.reward is None else f", reward {said.reward:g}"
                page.print(Text(f"{said.role}: {said.tokens} tokens{reward}", style="dim"))
                page.print(Text(said.text))
        page.print()


def print_control(run: ControlRun) -> None:
    """Print each algorithm's final return (interquartile mean over seeds with its interval) and speed."""
    table = _table("algorithm", "return [95%]", "seeds", "steps per CPU s")
    for algo in run.algos:
        final, lasts = run.final(algo), [rows[-1] for rows in run.of(algo)]
        rate = sum(row["step"] for row in lasts) / max(sum(row["cpu_s"] for row in lasts), 1e-9)
        interval = Text(f"{final.value:.1f} [{final.low:.1f}, {final.high:.1f}]")
        table.add_row(algo, interval, str(len(lasts)), f"{rate:.0f}")
    Page().print(table)


def print_bank(summary: BankSummary) -> None:
    """Print the counts of a trace bank by task and by sampler, and the attempts per success of rejection sampling."""
    page = Page()
    tasks = _table("task", "problems", "traces", "successes")
    for name, *counts in summary.tasks:
        tasks.add_row(Text(name), *map(str, counts))
    samplers = _table("sampler", "traces", "successes", "verifier", "ids")
    for run, num, num_success, verifier, reencoded in summary.samplers:
        ids = "encoded from text" if reencoded else "as sampled"
        samplers.add_row(*map(Text, (run or "-", str(num), str(num_success), verifier, ids)))
    page.print(tasks)
    page.print(samplers)
    if summary.num_tried:
        print_attempts(summary)


def print_trace(trace: Trace, decode: Callable[[Sequence[int]], str] | None) -> None:
    """Print a trace: its circumstances, then each turn with the environment's reply; without turns, its text.

    Args:
        decode: ids to text; ``None``: the tokenizer is not known, and of a trajectory only the last turn is a text.
    """
    page, source = Page(), trace.source
    page.print(Text(trace.problem_id, style="bold"))
    facts = [
        f"{trace.num_sampled} tokens",
        str(trace.stop_reason),
        f"reward {trace.reward:g}",
        "success" if trace.success else "no success",
        trace.cut,
        f"run {source.run or '-'}, step {source.step}",
        f"environment {source.environment}" if source.environment else "",
    ]
    page.print(Text(", ".join(filter(None, facts)), style="dim"))
    ends = [turn.start for turn in trace.turns[1:]] + [len(trace.all_ids)] * bool(trace.turns)
    for number, (turn, end) in enumerate(zip(trace.turns, ends, strict=True), start=1):
        page.print(
            Text(f"--- turn {number}: {_turn_facts(turn, given=turn.start < len(trace.prefix_ids))}", style="dim")
        )
        if decode is not None:
            page.print(Text(decode(trace.all_ids[turn.start : turn.end])))
            page.print(Text(decode(trace.all_ids[turn.end : end]), style="italic"))
    if decode is None or not trace.turns:
        page.print(Text(trace.text))
    page.print()


def _turn_facts(turn: Turn, given: bool) -> str:
    facts = [
        f"{turn.num_tokens} tokens",
        "given" if given else "",
        "" if turn.reward is None else f"reward {turn.reward:g}",
        "" if turn.success is None else ("success" if turn.success else "no success"),
        f"{turn.num_calls} calls" if turn.num_calls else "",
        f"{turn.num_errors} of them failed" if turn.num_errors else "",
        "not understood" if turn.is_invalid else "",
    ]
    return ", ".join(filter(None, facts))


def print_attempts(summary: BankSummary) -> None:
    """Print the histogram of attempts per success, with a bar for each bin."""
    page = Page()
    page.print(
        f"{summary.num_attempts} attempts on {summary.num_tried} problems, {summary.num_unsolved} of them without "
        f"success; {summary.flops:.3g} FLOP"
    )
    table = _table("attempts per success", "problems", "")
    most = max((one.num_problems for one in summary.attempts), default=1)
    for one in summary.attempts:
        table.add_row(f"up to {one.most}", str(one.num_problems), "#" * round(40 * one.num_problems / most))
    page.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0, style="bold" if position == 0 else "")
    return table
