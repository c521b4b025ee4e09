"""The page shows what the audit found, whole or damaged, and nothing where there was none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.report.page import render
from heliostat.report.runs.read import AUDIT, read_run
from tests.unit.report.synthetic import Shape, make_run

REFUSED = {
    "problem_id": "a", "place": "sums.jsonl, line 7", "question": "1 + <b>1</b> =", "answer": "2 apples", "read": None,
    "why": "'numeric' gives 0",
}  # fmt: skip
TASK = {
    "task": "sums", "verdict": "right answers are refused", "num_oracles": 200, "num_left": 12, "probes": [{}] * 31,
    "findings": [{"kind": "oracle refused", "sentence": "9 of 200 oracle answers do not succeed"}],
    "refused": [REFUSED] * 9,
}  # fmt: skip


def page_of(folder: Path, audit: object) -> str:
    run = make_run(folder / "run", Shape(num_steps=5))
    if audit is not None:
        (run / AUDIT).write_text(audit if isinstance(audit, str) else json.dumps(audit))
    return render([read_run(run)])


def test_findings_and_refused_answers_are_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"tasks": [TASK]})
    assert "200 right answers and 30 tricks were paid: right answers are refused. Time was up before 12 more" in page
    assert "9 of 200 oracle answers do not succeed" in page
    assert page.count("sums.jsonl, line 7") == 5
    assert "1 + &lt;b&gt;1&lt;/b&gt; =" in page
    assert "read nothing: the answer marker is missing" in page


def test_a_run_without_an_audit_has_no_section(tmp_path: Path) -> None:
    assert "Is the reward sound?" not in page_of(tmp_path, None)


def test_an_environment_has_a_card(tmp_path: Path) -> None:
    finding = {"kind": "ignores the seed", "sentence": "nothing <changed>"}
    policies = [{"name": "null", "num_episodes": 20}, {"name": "random", "num_episodes": 19}]
    audit = {"environment": "environment 'maze'", "verdict": "fine", "num_problems": 20, "num_cut": 1}
    audit |= {"slowest_ms": 12.3, "findings": [finding], "policies": policies}
    page = page_of(tmp_path, {"tasks": [], "environments": [audit]})
    assert "2 policies played 39 episodes on 20 problems: fine. The slowest call took 12 ms." in page
    assert "ignores the seed: nothing &lt;changed&gt;" in page
    assert "Time was up before 1 more episodes had ended." in page


@pytest.mark.parametrize(
    "audit",
    [
        "{",
        "[]",
        {"tasks": 3},
        {"environments": [{"policies": 3}]},
        {"tasks": [3, {"findings": [7], "num_oracles": "x"}]},
    ],
)
def test_a_damaged_audit_costs_the_section_and_no_more(tmp_path: Path, audit: object) -> None:
    page = page_of(tmp_path, audit)
    assert "Held-out pass@1" in page
    assert ("audit.json is damaged" in page) == isinstance(audit, str)
