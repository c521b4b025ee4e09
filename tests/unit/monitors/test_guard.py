import json
import math
import subprocess
import sys

import numpy as np
import pytest

from heliostat.monitors import Guard, default_rules
from heliostat.tracking import check_key


def healthy(seed, num_steps):
    """Signals of an uneventful run: reward rises, entropy falls, everything is noisy."""
    rng = np.random.default_rng(seed)
    for step in range(1, num_steps + 1):
        share = step / num_steps
        yield {
            "reward/mean": 0.4 + 0.4 * share + 0.03 * rng.normal(),
            "reward/zero_signal": 0.3 + 0.05 * rng.normal(),
            "policy/entropy": 0.6 * math.exp(-share) + 0.02 * rng.normal(),
            "mismatch/k3": 1e-12 * math.exp(rng.normal()),
            "mismatch/chi2_token": 2e-12,
            "mismatch/ess": 1.0,
            "optim/grad_norm": math.exp(0.3 * rng.normal()),
            "optim/update_ratio": 1e-3 * math.exp(0.2 * rng.normal()) * (1 - 0.9 * share),
            "answers/distinct_correct": 1.0,
            "text/loops": 0.01 * rng.random(),
            "text/rep4": 0.03 + 0.01 * rng.random(),
            "length/truncated": 0.05 * rng.random(),
            "length/mean": 12 + 3 * share + 0.3 * rng.normal(),
            "text/duplicate_prompts": 0.0,
        }


def read(guard, rows):
    return [finding for step, row in enumerate(rows, start=1) for finding in guard.read(step, row)]


def test_a_healthy_run_is_left_alone():
    assert [f.rule for seed in range(5) for f in read(Guard(), healthy(seed, 400))] == []


FAULTS = {
    "wrecked": {"optim/update_ratio": 2.0},
    "step-size": {"optim/update_ratio": 8e-3},
    "longer-steps": {"optim/update_ratio": 2e-3},
    "mismatch": {"mismatch/k3": 0.01},
    "mismatch-chi2": {"mismatch/chi2_token": 0.2},
    "mismatch-ess": {"mismatch/ess": 0.4},
    "reward-falls": {"reward/mean": 0.3},
    "reward-jumps": {"reward/mean": 1.0},
    "no-signal": {"reward/zero_signal": 1.0},
    "entropy-collapse": {"policy/entropy": 0.02},
    "entropy-explosion": {"policy/entropy": 2.0},
    "loops": {"text/loops": 0.3},
    "repetition": {"text/rep4": 0.3},
    "truncation": {"length/truncated": 0.5},
    "length": {"length/mean": 40.0},
    "duplicates": {"text/duplicate_prompts": 0.5},
    "gradient": {"optim/grad_norm": 90.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_is_named_once_within_six_steps(rule):
    rows = [row if step < 100 else row | FAULTS[rule] for step, row in enumerate(healthy(0, 200), start=1)]
    found = [finding for finding in read(Guard(), rows) if finding.rule == rule]
    assert len(found) == 1 or rule == "reward-falls"
    assert 100 <= found[0].step <= (108 if rule == "reward-falls" else 105), (
        "a sum over the noise of rewards takes longer"
    )
    assert 99 <= found[0].onset <= 101
    assert FAULTS[rule][found[0].key] == found[0].value
    assert found[0].key in found[0].sentence()


def of_turns(num_steps, **later):
    """Signals of trajectories; from step 100 on ``later`` replaces some."""
    rng = np.random.default_rng(0)
    for step in range(1, num_steps + 1):
        row = {"valid_calls": 0.3, "repeated_actions": 0.04, "empty_actions": 0.01, "turn_truncated": 0.02}
        row |= {"out_of_tokens": 0.02} | (later if step >= 100 else {})
        yield {f"agent/{key}": value + 0.004 * rng.normal() for key, value in row.items()}


TURN_FAULTS = {
    "tool-use": {"valid_calls": 0.1},
    "repeated-actions": {"repeated_actions": 0.3},
    "empty-actions": {"empty_actions": 0.2},
    "turns-cut": {"turn_truncated": 0.3},
    "tokens-used-up": {"out_of_tokens": 0.3},
}


@pytest.mark.parametrize("rule", TURN_FAULTS)
def test_each_fault_of_trajectories_is_named_once(rule):
    (found,) = read(Guard(), of_turns(150, **TURN_FAULTS[rule]))
    assert found.rule == rule
    assert 100 <= found.step <= 103
    assert "max_new_tokens" not in found.advice


def test_tool_use_that_peaks_and_collapses_is_seen_below_its_early_level():
    """Reward may still be high by then: the calls tell first."""
    calls = [*np.linspace(0.2, 0.6, 80), *np.linspace(0.6, 0.0, 60)]
    found = read(Guard(), [{"agent/valid_calls": float(value)} for value in calls])
    assert [finding.rule for finding in found] == ["tool-use"]
    assert found[0].step > 80


def test_a_run_without_calls_has_no_tool_use_to_lose():
    assert read(Guard(), [{"agent/valid_calls": 0.0}] * 200) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_numbers_that_are_not_finite_are_found_once(value):
    rows = [row if step not in (30, 31, 40) else row | {"reward/mean": value} for step, row in
            enumerate(healthy(0, 50), start=1)]  # fmt: skip
    found = read(Guard(), rows)
    assert [(f.rule, f.level, f.step) for f in found] == [
        ("not-finite", "broken", 30),
        ("not-finite", "broken", 40),
    ]
    json.dumps([f.to_row() for f in found], allow_nan=False)


def test_a_skipped_update_is_noted():
    rows = [row | {"optim/bad_steps": float(step >= 7) + float(step >= 9)} for step, row in
            enumerate(healthy(0, 12), start=1)]  # fmt: skip
    assert [(f.rule, f.level, f.step) for f in read(Guard(), rows)] == [
        ("skipped-update", "note", 7),
        ("skipped-update", "note", 9),
    ]


def test_a_mismatch_is_up_while_it_lasts():
    guard = Guard()
    for step, row in enumerate(healthy(0, 120), start=1):
        bad = 80 <= step < 90
        guard.read(step, row | ({"mismatch/k3": 0.1} if bad else {}))
        assert guard.mismatched == bad


@pytest.mark.parametrize("cut", [10, 59, 104, 150])
def test_it_continues_from_json_as_if_never_stopped(cut):
    rows = [row if step < 100 else row | FAULTS["reward-falls"] for step, row in enumerate(healthy(3, 200), start=1)]
    expected = read(Guard(), rows)
    first, second = Guard(), Guard()
    for step, row in enumerate(rows[:cut], start=1):
        first.read(step, row)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [finding for step, row in enumerate(rows[cut:], start=cut + 1) for finding in second.read(step, row)]
    assert rest == [finding for finding in expected if finding.step > cut]
    assert expected


def test_rules_watch_declared_metrics_and_have_names_of_their_own():
    rules = default_rules()
    for rule in rules:
        check_key(rule.key)
    assert len({rule.name for rule in rules}) == len(rules)


def test_judging_needs_no_torch():
    code = "import heliostat.monitors, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
