"""Recorded runs that were wrecked in one way each, and healthy ones: the first finding is the one to read."""

import json
from pathlib import Path

import pytest
from studies.wrecks.cases import HEALTHY, WRECKS
from studies.wrecks.records import RECORDED, unpack

from heliostat.report.diagnosis import diagnose
from heliostat.report.diagnosis.stories import STORIES
from heliostat.report.page import render
from heliostat.report.runs.read import read_run

NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))
MISSED = frozenset({"one-long-step-of-dapo", "inverted-verifier"})
"""Runs whose first finding is another one than it should be; the page says so."""


def test_there_are_enough_of_both():
    assert len([name for name in NAMES if not name.startswith("healthy-")]) >= 20
    assert len([name for name in NAMES if name.startswith("healthy-")]) >= 10
    assert set(NAMES) <= {*WRECKS, *(f"healthy-{name}" for name in HEALTHY)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name in WRECKS and name not in MISSED])
def test_a_wreck_is_named_first(name: str, tmp_path: Path):
    found = diagnose(unpack(name, tmp_path / "run"))
    assert found.findings[0].rule == WRECKS[name].rule
    assert any(WRECKS[name].rule in rules for rules, _ in STORIES), "the headline has a story of its own"
    assert found.findings[0].advice in found.format()
    assert not found.healthy


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("healthy-") and name not in MISSED])
def test_a_healthy_run_has_no_finding(name: str, tmp_path: Path):
    assert diagnose(unpack(name, tmp_path / "run")).findings == ()


def test_the_page_says_it_at_the_top(tmp_path: Path):
    page = render([read_run(unpack("no-warm-start", tmp_path / "run"))])
    assert page.index("there is nothing to reinforce") < page.index('class="verdict')
    healthy = render([read_run(unpack("healthy-pmd-mean", tmp_path / "healthy"))])
    assert "What the run says first" not in healthy


def test_a_foreign_log_of_metrics_is_judged_by_the_same_rules(tmp_path: Path):
    path = tmp_path / "log_history.jsonl"
    trl = {
        "reward": 0.0,
        "frac_reward_zero_std": 1.0,
        "completions/clipped_ratio": 0.2,
        "entropy": 1.5,
        "grad_norm": 0.0,
    }
    path.write_text("".join(json.dumps({"step": step, **trl}) + "\n" for step in range(1, 8)))
    assert diagnose(path).findings[0].rule == "nothing-solved"
    cut = trl | {"completions/clipped_ratio": 1.0, "completions/max_length": 256}
    path.write_text("".join(json.dumps({"step": step, **cut}) + "\n" for step in range(1, 8)))
    first = diagnose(path).findings[0]
    assert first.rule == "all-cut"
    assert "at 256 tokens" in first.meaning
    assert "512" in first.advice


def test_a_run_that_failed_is_never_called_sound(tmp_path: Path):
    folder = unpack("healthy-pmd-mean", tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"status": "failed", "reason": "the disk is full"}))
    found = diagnose(folder)
    assert found.headline == "It failed: the disk is full"
    assert not found.healthy
