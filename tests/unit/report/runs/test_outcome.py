"""Before, after and change: from the summary, from evaluations, paired, and in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.report.runs.outcome import against, outcome, pass_at_1_by_step, pass_curve, summary_curve
from heliostat.report.runs.read import EvaluatedProblem, Run, read_run
from heliostat.report.sections.verdict import MIN_PROBLEMS, judge, percent, points
from tests.unit.report.synthetic import Shape, make_run


def rows(
    phase: str, successes: list[int], step: int = 0, num_samples: int = 4, task: str = "t"
) -> list[EvaluatedProblem]:
    return [
        EvaluatedProblem(step, phase, task, str(index), num_samples, count)  # type: ignore[arg-type]
        for index, count in enumerate(successes)
    ]


def run_of(*evaluations: EvaluatedProblem, summary: dict[str, object] | None = None, label: str = "r") -> Run:
    return Run(label, Path("r"), evaluations=evaluations, summary=summary or {})


def test_the_change_is_paired_over_problems() -> None:
    before, after = [0, 4, 2, 1] * 5, [1, 4, 3, 2] * 5
    result = outcome(run_of(*rows("before", before), *rows("after", after, 9)))
    assert result.change is not None
    assert result.num_problems == 20
    assert result.change.value == pytest.approx(0.1875)
    # Problems differ far more from each other than from themselves: the paired interval is the narrow one.
    assert result.before is not None
    assert result.change.high - result.change.low < 0.5 * (result.before.high - result.before.low)


def test_problems_that_only_one_side_saw_do_not_count() -> None:
    result = outcome(run_of(*rows("before", [0, 0]), *rows("after", [4, 4, 0, 0], 9)))
    assert result.change is not None
    assert result.change.value == 1
    assert result.num_problems == 2


def test_the_same_problem_of_two_tasks_is_two_problems() -> None:
    result = outcome(run_of(*rows("before", [0], task="a"), *rows("after", [4], 9, task="b")))
    assert result.num_problems == 0


def test_the_summary_is_believed_and_its_interval_used(finished: Path) -> None:
    run = read_run(finished)
    result = outcome(run)
    assert result.after is not None
    assert result.after.value == run.summary["after"]["pass@1"]
    assert [result.after.low, result.after.high] == run.summary["after"]["ci95"]
    assert result.final


def test_without_evaluations_the_change_comes_from_the_summary_alone() -> None:
    sides = {"before": {"pass@1": 0.4, "ci95": [0.3, 0.5]}, "after": {"pass@1": 0.8, "ci95": [0.7, 0.9]}}
    result = outcome(run_of(summary=sides))
    assert result.change is not None
    assert (result.change.value, result.num_problems) == (pytest.approx(0.4), 0)
    assert result.change.low == pytest.approx(0.4 - 0.1 * 2**0.5)


@pytest.mark.parametrize("broken", [{"before": None}, {"before": {"pass@1": "high"}}, {"before": {"ci95": 3}}, {}])
def test_broken_summaries_fall_back_to_the_evaluations(broken: dict[str, object]) -> None:
    result = outcome(run_of(*rows("before", [2] * 20), summary=broken))
    assert result.before is not None
    assert result.before.value == 0.5


def test_a_run_that_was_stopped_is_judged_by_its_last_evaluation_in_training() -> None:
    run = run_of(
        *rows("before", [0] * 20),
        *rows("during", [1] * 20, -40, num_samples=1),
        *rows("during", [0] * 20, 10, num_samples=1),
        *rows("during", [1] * 20, 20, num_samples=1),
    )
    result = outcome(run)
    assert result.change is not None
    assert (result.change.value, result.last_step, result.final) == (1, 20, False)
    assert "at step 20, the last evaluation before the run stopped" in judge(run).sentence


def test_checks_of_the_warm_start_are_not_the_outcome() -> None:
    result = outcome(run_of(*rows("during", [1] * 20, -40, num_samples=1)))
    assert result.after is None


def test_every_evaluation_is_on_the_curve_once(finished: Path) -> None:
    curve = dict(pass_at_1_by_step(read_run(finished)))
    assert {0.0, 20.0, 180.0, 200.0} <= curve.keys()
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in curve.values())


def test_the_final_evaluation_replaces_a_check_at_the_same_step() -> None:
    run = run_of(*rows("during", [0] * 4, 9, num_samples=1), *rows("after", [4] * 4, 9))
    assert [(step, estimate.value) for step, estimate in pass_at_1_by_step(run)] == [(9.0, 1.0)]


def test_pass_at_k_rises_with_k_and_stops_at_the_fewest_samples() -> None:
    curve = pass_curve([*rows("after", [1, 2, 0, 3]), *rows("after", [1], num_samples=3)])
    assert [k for k, _ in curve] == [1, 2, 3]
    values = [estimate.value for _, estimate in curve]
    assert values == sorted(values)
    assert [k for k, _ in pass_curve(rows("after", [3] * 3, num_samples=100))] == [*range(1, 9), 16, 32, 64, 100]
    assert pass_curve([]) == []


def test_pass_at_k_of_the_summary_stands_in() -> None:
    run = run_of(summary={"after": {"pass@k": {"4": 0.9, "1": 0.5, "x": 1}}})
    assert [(k, estimate.value) for k, estimate in summary_curve(run, "after")] == [(1, 0.5), (4, 0.9)]


def test_a_run_against_itself_is_exactly_zero_and_strangers_cannot_be_compared() -> None:
    run, other = run_of(*rows("after", [1, 2, 3, 4])), run_of(*rows("after", [4] * 4, task="other"))
    itself = against(run, run)
    assert itself is not None
    assert (itself.low, itself.value, itself.high) == (0, 0, 0)
    assert against(run, other) is None


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([1] * 40, [3] * 40, "better"),
        ([3] * 40, [1] * 40, "worse"),
        ([0, 4] * 20, [4, 0] * 20, "unclear"),
        ([2] * 40, [2] * 40, "unclear"),
        ([0] * (MIN_PROBLEMS - 1), [4] * (MIN_PROBLEMS - 1), "unknown"),
        ([2] * 40, [], "unknown"),
        ([], [], "unknown"),
    ],
)
def test_the_verdict_is_what_the_interval_says(before: list[int], after: list[int], kind: str) -> None:
    run = run_of(*rows("before", before), *rows("after", after, 9))
    verdict = judge(run)
    assert verdict.kind == kind
    change = verdict.outcome.change
    if kind in ("better", "worse"):
        assert change is not None
        assert change.low > 0 if kind == "better" else change.high < 0


def test_the_sentence_states_both_rates_the_change_and_its_interval() -> None:
    verdict = judge(run_of(*rows("before", [1] * 40), *rows("after", [3] * 40, 9)))
    before, after, change = verdict.outcome.before, verdict.outcome.after, verdict.outcome.change
    assert before
    assert after
    assert change
    assert f"rose from {percent(before)} to {percent(after)}" in verdict.sentence
    interval = f"{points(change.low)} to {points(change.high)}, paired over 40 problems"
    assert f"+50.0 points with a 95% interval of {interval}" in verdict.sentence


def test_what_did_not_change_stayed_where_it_was_and_is_no_certainty() -> None:
    verdict = judge(run_of(*rows("before", [0] * 16), *rows("after", [0] * 16, 9)))
    assert verdict.sentence.startswith("Held-out pass@1 stayed at 0.0% (0.0% to 19.4%). The change is 0.0 points")
    assert verdict.kind == "unclear"
    assert judge(run_of(*rows("before", [4] * 16), *rows("after", [4] * 16, 9))).sentence.startswith(
        "Held-out pass@1 stayed at 100.0% (80.6% to 100.0%)"
    )


@pytest.mark.parametrize("after", [564, 565, 563])
def test_a_change_that_rounds_to_nothing_is_no_rise_and_no_fall(after: int) -> None:
    before = rows("before", [141] * 4, num_samples=1000)
    later = rows("after", [141, 141, 141, after - 3 * 141], 9, num_samples=1000)
    sentence = judge(run_of(*before, *later)).sentence
    assert sentence.startswith("Held-out pass@1 stayed at 14.1% (")
    assert "The change is 0.0 points with a 95% interval of" in sentence


@pytest.mark.parametrize(("reason", "num"), [("", 1), ("stopped; the same command continues with --run r", 0)])
def test_the_way_to_continue_is_said_once(reason: str, num: int) -> None:
    ending = judge(run_of(summary={"status": "interrupted", "reason": reason})).ending
    assert ending.count("The same command continues it.") == num
    assert ending.lower().count("same command continues") == 1


def test_an_interval_without_width_in_an_old_summary_is_measured_again() -> None:
    stated: dict[str, object] = {
        "before": {"pass@1": 0.0, "ci95": [0.0, 0.0]},
        "after": {"pass@1": 0.5, "ci95": [0.4, 0.6]},
    }
    result = outcome(run_of(*rows("before", [0] * 16), *rows("after", [2] * 16), summary=stated))
    assert result.before
    assert result.after
    assert result.before.high == pytest.approx(0.1936, abs=1e-4)
    assert (result.after.low, result.after.high) == (0.4, 0.6)


@pytest.mark.parametrize(("trained", "key", "said"), [
    (0.9, "reward/success", True), (0.3, "reward/success", False), (0.1, "reward/success", False),
    (0.9, "prefix/success_without", True),
])  # fmt: skip
def test_training_far_above_held_out_success_is_said(trained: float, key: str, said: bool) -> None:
    evaluations = (*rows("before", [1] * 40), *rows("after", [1] * 40, 9))
    metrics = [{"step": float(step), "reward/success": 0.9, key: trained} for step in range(1, 10)]
    verdict = judge(Run("r", Path("r"), evaluations=evaluations, metrics=metrics))
    assert ("far above held-out ones" in verdict.sentence) is said
    assert (f"{trained:.1%} of the time over the last 9 steps" in verdict.sentence) is said


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("finished", "", "Finished after 5 of 5 steps."),
        ("interrupted", "stopped by the user", "Interrupted after 5 of 5 steps: stopped by the user."),
        ("failed", "loss was NaN three times", "Failed after 5 of 5 steps: loss was NaN three times."),
        (None, "", "Still running, or killed: 5 of 5 steps are in the log."),
    ],
)
def test_the_ending_is_told(tmp_path: Path, status: str | None, reason: str, words: str) -> None:
    folder = make_run(tmp_path / "run", Shape(num_steps=5))
    (folder / "summary.json").write_text(json.dumps({"status": status, "reason": reason}))
    assert judge(read_run(folder)).ending.startswith(words)
