"""The result of a run in one plain sentence: the change on held-out problems, and whether it is more than noise.

Left out: causes and advice. The sentence says no more than the interval does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliostat.report.charts.scales import format_value
from heliostat.report.runs.outcome import Outcome, outcome
from heliostat.report.runs.read import Run, dig
from heliostat.statistics import Estimate

Kind = Literal["better", "worse", "unclear", "unknown"]

MIN_PROBLEMS = 10  # with fewer problems than this the verdict is uncertain
FAR = 0.2  # excess of training over held-out success that is reported as memorisation
NUM_LAST = 10  # steps that training success is averaged over

HEADLINES: dict[Kind, str] = {
    "better": "It got better",
    "worse": "It got worse",
    "unclear": "No change that the evaluation can tell from noise",
    "unknown": "Not enough was measured to say",
}


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """The judgement, its headline, the sentence that backs it, and how the run ended."""

    kind: Kind
    headline: str
    sentence: str
    ending: str
    outcome: Outcome


def judge(run: Run) -> RunVerdict:
    """Compare held-out pass@1 before and after.

    **Limits** ``better`` or ``worse`` exactly where the 95% interval of the change leaves out zero, and never from
    fewer than ``MIN_PROBLEMS`` shared problems.
    """
    result = outcome(run)
    kind = _kind(result)
    sentence = " ".join(filter(None, (_sentence(result, run.status), _gap(run, result))))
    return RunVerdict(kind, HEADLINES[kind], sentence, _ending(run), result)


def percent(estimate: Estimate) -> str:
    """Write an estimate with its interval, as in ``38.5% (34.1% to 42.9%)``."""
    low, high = format_value(estimate.low, "fraction"), format_value(estimate.high, "fraction")
    return f"{_rounded(estimate)} ({low} to {high})"


def _rounded(estimate: Estimate) -> str:
    return format_value(estimate.value, "fraction")


def points(value: float) -> str:
    """Write a difference of two rates in percentage points, with its sign; 0.0 where it rounds to that."""
    written = format_value(value, "fraction").removesuffix("%")
    return f"+{written}" if value > 0 and written != "0.0" else written


def _kind(result: Outcome) -> Kind:
    change = result.change
    if change is None or 0 < result.num_problems < MIN_PROBLEMS:
        return "unknown"
    if change.low > 0:
        return "better"
    return "worse" if change.high < 0 else "unclear"


def _sentence(result: Outcome, status: str) -> str:
    if result.change is None or result.before is None or result.after is None:
        known = result.before or result.after
        if known is None:
            return "No held-out evaluation was recorded, so there is no pass@1 to compare."
        side = "before training" if result.before else "after training"
        return f"Held-out pass@1 {side} was {percent(known)}, and there is no second evaluation to compare it with."
    change = result.change
    after = percent(result.after)
    is_same = _rounded(result.before) == _rounded(result.after)
    verb = "rose" if change.value > 0 else "fell"
    went = f"stayed at {after}" if is_same else f"{verb} from {percent(result.before)} to {after}"
    latest = "the last evaluation so far" if status == "running" else "the last evaluation before the run stopped"
    when = "" if result.final else f" at step {result.last_step}, {latest}"
    paired = f", paired over {result.num_problems} problems" if result.num_problems else ""
    meanings: dict[Kind, str] = {
        "better": "zero lies outside, so this is more than sampling noise",
        "worse": "zero lies outside, so this is more than sampling noise",
        "unclear": "zero lies inside, so sampling noise alone could have done it",
        "unknown": f"fewer than {MIN_PROBLEMS} problems are too few for an interval to be trusted",
    }
    return (
        f"Held-out pass@1 {went}{when}. "
        f"The change is {points(change.value)} points with a 95% interval of {points(change.low)} to "
        f"{points(change.high)}{paired}: {meanings[_kind(result)]}."
    )


def _gap(run: Run, result: Outcome) -> str:
    """Write a sentence if training problems were solved far more often than held-out ones, else nothing."""
    logged = run.series("prefix/success_without") or run.series("reward/success")
    last = [value for step, value in logged if step > 0 and value is not None][-NUM_LAST:]
    if result.after is None or not last:
        return ""
    trained = sum(last) / len(last)
    if trained < result.after.value + FAR or trained <= result.after.high:
        return ""
    steps = "the last step" if len(last) == 1 else f"the last {len(last)} steps"
    return (
        f"Training problems were solved {format_value(trained, 'fraction')} of the time over {steps}, far above "
        "held-out ones: what was learned holds for them and not beyond."
    )


def _ending(run: Run) -> str:
    planned = run.setting("train.num_steps")
    steps = f"{run.last_step} of {planned} steps" if isinstance(planned, int) else f"{run.last_step} steps"
    reason = dig(run.summary, "reason", default="")
    because = f": {reason}" if isinstance(reason, str) and reason else ""
    resume = "" if "same command continues" in because else " The same command continues it."
    endings = {
        "finished": f"Finished after {steps}{because}.",
        "interrupted": f"Interrupted after {steps}{because}.{resume}",
        "failed": f"Failed after {steps}{because}.",
        "running": f"Running: {steps} are in the log.",
    }
    return endings.get(run.status, f"Still running, or killed: {steps} are in the log. The same command continues it.")
