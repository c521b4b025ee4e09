"""Results in an interpreter and in a notebook: one line, and a card that escapes other people's text."""

from pathlib import Path

from heliostat.train import EvalReport, Evaluation, RunResult
from heliostat.train.evaluation.evaluate import ProblemResult, compare


def evaluation(*successes):
    return Evaluation(tuple(ProblemResult("<sums>", str(n), 4, count, 0.5) for n, count in enumerate(successes)))


def test_a_result_is_one_short_line():
    before, after = evaluation(0, 1, 2), evaluation(4, 4, 3)
    result = RunResult(Path("runs/x"), "finished", "", before, after)
    assert repr(before).startswith("Evaluation(pass@1 25.0% [")
    assert repr(result) == (
        f"RunResult(finished; held-out pass@1 {before.described} -> {after.described}; folder runs/x)"
    )
    report = EvalReport(("a", "b"), (before, after), compare(before, after), ("float32", "float32"))
    assert repr(report) == f"EvalReport(a: pass@1 {before.described}; b: pass@1 {after.described})"
    assert repr(Evaluation(())) == "Evaluation(no problems)"


def test_a_card_has_every_result_and_escapes_text():
    before = evaluation(0, 1, 2)
    failed = RunResult(Path("runs/x"), "failed", "<script>", before, None, findings=("a & b",))
    card = failed._repr_html_()
    assert "<script>" not in card
    assert all(part in card for part in ("&lt;script&gt;", "a &amp; b", before.described, "unknown", "report.html"))
    assert "&lt;sums&gt;" in before._repr_html_()
    report = EvalReport(("a", "b"), (before, before), compare(before, before), ("float32", "float32"))
    assert "second minus first: +0.0% pass@1" in report._repr_html_()
