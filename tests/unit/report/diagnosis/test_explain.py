"""A collapsed run is explained from its folder alone; a healthy one is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.report.diagnosis import diagnose
from tests.unit.report.synthetic import Shape, make_run


def rewrite(folder: Path, change=lambda step: {}) -> Path:
    """Change the log step by step; the one broken number that the synthetic run has is mended."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    mended = {"policy/lambda_hat": 0.1}
    path.write_text("".join(json.dumps(row | mended | change(row["step"])) + "\n" for row in rows))
    return folder


def test_a_healthy_run(tmp_path: Path) -> None:
    found = diagnose(rewrite(make_run(tmp_path / "run", Shape())))
    assert [finding.rule for finding in found.findings if finding.level != "note"] == []
    assert "ended as finished" in found.format()
    assert "Reward went from" in found.format()


COLLAPSE = {
    "a long step": (
        lambda step: (
            ({"optim/update_ratio": 0.02 if step == 100 else 0.001} if step > 0 else {})
            | ({"reward/mean": 0.02, "policy/entropy": 3.0} if step > 102 else {})
        ),
        "step-size",
        "much longer",
        100,
    ),
    "a broken sampler": (
        lambda step: (
            ({"mismatch/k3": 0.05 if step >= 80 else 1e-9} if step > 0 else {})
            | ({"reward/mean": 0.02} if step > 110 else {})
        ),
        "mismatch",
        "disagreeing about the same tokens",
        80,
    ),
    "narrowing": (
        lambda step: {"policy/entropy": 0.001, "reward/zero_signal": 0.99} if step > 90 else {},
        "entropy-collapse",
        "stopped exploring",
        91,
    ),
    "not a number": (lambda step: {"reward/mean": None} if step == 50 else {}, "not-finite", "not finite", 50),
}


@pytest.mark.parametrize("name", COLLAPSE)
def test_the_cause_comes_first(tmp_path: Path, name: str) -> None:
    change, rule, words, onset = COLLAPSE[name]
    found = diagnose(rewrite(make_run(tmp_path / "run", Shape()), change))
    assert found.findings[0].rule == rule
    assert found.findings[0].onset == onset
    assert words in found.headline
    assert not found.healthy
    text = found.format()
    assert found.findings[0].advice in text
    assert text.index(found.findings[0].meaning) < text.index("What could be done")


def test_what_the_guard_did_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Shape(num_steps=30))
    event = {"step": 3, "action": "went back", "text": "step 3: back to 1", "meaning": "a long step"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    found = diagnose(rewrite(run))
    assert "step 3: back to 1" in found.format()
    assert "took it back 1 time, the first time at step 3: a long step" in found.headline
    assert not found.healthy


def test_a_metrics_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, "reward/mean": 0.5, "mismatch/ess": 1.0 if step < 40 else 0.2} for step in range(1, 80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 80, "rew')
    assert diagnose(path).findings[0].rule == "mismatch-ess"


def test_transcripts_of_any_origin(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    loop = "so it is " * 40
    rows = [{"question": f"what is {n}?", "response": loop if n % 2 else f"it is {n}, of course"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = diagnose(path)
    assert not found.healthy
    assert "50% of the texts end in a loop" in found.headline


def test_one_text_for_every_prompt_is_a_template(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"prompt": f"{n} + 1 =", "completion": "the answer is 7" if n < 8 else str(n + 1)} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "80% of different prompts get the same text" in diagnose(path).headline


@pytest.mark.parametrize("content", ["", "not json\n", '{"a": 1}\n'])
def test_nothing_to_read_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "nothing.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"to diagnose|no row has a text"):
        diagnose(path)
    with pytest.raises(ValueError, match="there is no run folder or file"):
        diagnose(tmp_path / "absent")
