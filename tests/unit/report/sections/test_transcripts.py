"""Transcripts: the same problem on both sides, in file order, escaped and bounded."""

from __future__ import annotations

from pathlib import Path

from heliostat.report.runs.read import Run, Transcript
from heliostat.report.sections.transcripts import MAX_CHARACTERS, pair_up, transcript_section


def said(phase: str, problem: str, text: str = "x", step: int = 0, **how: object) -> Transcript:
    return Transcript(step, phase, "t", problem, f"prompt {problem}", text, **how)  # type: ignore[arg-type]


def section(*rows: Transcript, limit: int = 8) -> str:
    return transcript_section(Run("r", Path("r"), transcripts=rows), limit) or ""


def test_problems_seen_on_both_sides_are_paired_in_file_order() -> None:
    rows = [said("before", "b"), said("before", "a"), said("before", "c"), said("after", "a"), said("after", "b")]
    pairs = pair_up(rows)
    assert [(pair.before.problem_id, pair.after.problem_id) for pair in pairs if pair.before and pair.after] == [
        ("b", "b"), ("a", "a")
    ]  # fmt: skip
    assert len(pairs) == 2


def test_the_first_of_several_samples_is_taken() -> None:
    (pair,) = pair_up([said("before", "a", "first"), said("before", "a", "second"), said("after", "a")])
    assert pair.before is not None
    assert pair.before.completion == "first"


def test_a_stopped_run_shows_its_latest_evaluation_in_training() -> None:
    rows = [
        said("before", "a"),
        said("during", "a", "warm", -20),
        said("during", "a", "early", 10),
        said("during", "a", "late", 20),
    ]
    (pair,) = pair_up(rows)
    assert pair.after is not None
    assert pair.after.completion == "late"
    assert "At step 20" in section(*rows)


def test_one_sided_problems_are_shown_where_there_are_no_pairs() -> None:
    markup = section(said("before", "a"), said("after", "b"))
    assert markup.count("No transcript of this problem.") == 2
    assert section() == ""


def test_model_text_stays_text() -> None:
    hostile = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    markup = section(said("after", "a", hostile, answer=hostile, stop_reason=hostile))
    assert "<script" not in markup
    assert "<img" not in markup
    assert markup.count("&lt;script&gt;") == 3


def test_long_and_empty_texts_are_bounded_and_visible() -> None:
    markup = section(said("before", "a", "y" * (MAX_CHARACTERS + 7)), said("after", "a", " \n"))
    assert "… 7 more characters" in markup
    assert "y" * MAX_CHARACTERS in markup
    assert "y" * (MAX_CHARACTERS + 1) not in markup
    assert "(empty)" in markup


def test_the_number_shown_and_the_number_kept_are_told() -> None:
    rows = [said(phase, str(index)) for phase in ("before", "after") for index in range(5)]
    assert "The first 2 of 5 problems" in section(*rows, limit=2)
    assert "All 5 problems" in section(*rows)


def test_facts_name_how_a_completion_ended() -> None:
    markup = section(said("after", "a", reward=0.25, num_tokens=12, stop_reason="max_tokens", success=False))
    assert "reward 0.25 · 12 tokens · cut off: token budget" in markup
    assert "✗ not correct" in markup
