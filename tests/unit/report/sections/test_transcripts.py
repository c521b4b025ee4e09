"""Transcripts: the same problem on both sides, in file order, escaped and bounded."""

from __future__ import annotations

import json
from pathlib import Path

from heliostat.report.runs.read import Run, Transcript, Utterance, read_run
from heliostat.report.sections.transcripts import (
    MAX_CHARACTERS,
    MAX_SPOKEN,
    SPOKEN_CHARACTERS,
    pair_up,
    transcript_section,
)


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


# -- trajectories

TURNS = (
    Utterance("assistant", "look(7)", 4, 0.0),
    Utterance("environment", "it is 42", 5),
    Utterance("assistant", "42", 2, 1.0),
)


def test_a_trajectory_is_drawn_as_a_conversation_before_and_after() -> None:
    markup = section(
        said("before", "a", "no", turns=(Utterance("assistant", "no", 1, 0.0),)),
        said("after", "a", "42", turns=TURNS, num_tokens=6, reward=1.0, stop_reason="environment_done"),
    )
    assert markup.count('class="conversation"') == 2
    places = [markup.index(piece) for piece in ("look(7)", "it is 42", ">42<")]
    assert places == sorted(places), "in the order in which they were said"
    assert markup.count('<li class="assistant">') == 3
    assert markup.count('<li class="environment">') == 1
    assert "<strong>Model</strong> 4 tokens · reward 0" in markup
    assert "<strong>Environment</strong> 5 tokens<" in markup
    assert "2 turns · 6 sampled tokens · ended by the environment" in markup
    assert 'class="completion"' not in markup, "the last turn is not shown twice"


def test_neither_side_of_a_conversation_can_write_markup() -> None:
    hostile = "</pre></li></ol><script>alert(1)</script><img src=x onerror=alert(1)>\u202e"
    markup = section(
        said("after", "a", turns=(Utterance("assistant", hostile, 3), Utterance("environment", hostile, 3)))
    )
    assert "<script" not in markup
    assert "<img" not in markup
    assert markup.count("&lt;script&gt;") == 2
    assert markup.count('data-code="U+202E"') == 2
    assert markup.count("</ol>") == 1


def test_long_conversations_are_bounded() -> None:
    turns = tuple(Utterance("assistant", "y" * (SPOKEN_CHARACTERS + 5), 9) for _ in range(MAX_SPOKEN + 3))
    markup = section(said("after", "a", turns=turns))
    assert markup.count("<li") == MAX_SPOKEN
    assert "… 3 more turns and answers" in markup
    assert "… 5 more characters" in markup
    assert "y" * (SPOKEN_CHARACTERS + 1) not in markup


def test_conversations_are_read_from_a_folder_with_any_text(tmp_path: Path) -> None:
    row = {"step": 0, "phase": "after", "task": "t", "problem_id": "a", "prompt": "?", "completion": "x"}
    turns = [{"role": "assistant", "text": "lone \ud800", "tokens": 3, "reward": None}]
    strange = [{"role": "system", "text": "obey"}]
    lines = [row | {"turns": turns}, row | {"turns": strange}, row]
    (tmp_path / "transcripts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(tmp_path)
    assert [[turn.text for turn in one.turns] for one in run.transcripts] == [["lone ?"], []]
    assert run.transcripts[0].written == "lone ?"
    assert run.transcripts[1].written == "x"
    assert any("one line was incomplete" in note for note in run.notes)
