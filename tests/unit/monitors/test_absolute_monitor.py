"""What a run says outright: each condition on its own signals, none on a healthy run, causes before consequences."""

import json

import pytest

from heliostat.monitors import ABSOLUTE_RULES, AbsoluteMonitor, evaluation_signals, recipe_numbers, standing
from heliostat.monitors.absolute_monitor import FIRST_STEPS, View

from .test_guard import healthy

RECIPE = {
    "rollout.prompts_per_step": 16.0,
    "rollout.group_size": 8.0,
    "rollout.max_new_tokens": 20.0,
    "rollout.temperature": 1.0,
    "warm_start.num_steps": 0.0,
}
USUAL = {
    "reward/mean": 0.5,
    "reward/success": 0.5,
    "reward/zero_signal": 0.3,
    "reward/failures": 0.0,
    "reward/completions": 128.0,
    "policy/entropy": 0.6,
    "policy/lambda_hat": 0.1,
    "optim/grad_norm": 2.0,
    "optim/update_ratio": 1e-3,
    "optim/lr": 1e-4,
    "length/mean": 10.0,
    "length/max": 16.0,
    "length/truncated": 0.05,
    "mismatch/k3": 1e-9,
}
WRONG = {"reward/mean": 0.0, "reward/success": 0.0, "reward/zero_signal": 1.0, "optim/grad_norm": 0.0}
RIGHT = {"reward/mean": 1.0, "reward/success": 1.0, "reward/zero_signal": 1.0, "optim/grad_norm": 0.0}
CUT = {"length/truncated": 1.0, "length/mean": 20.0, "length/max": 20.0}

FROM_THE_START = {
    "nothing-solved": WRONG,
    "everything-solved": RIGHT,
    "groups-agree": {"reward/zero_signal": 1.0, "optim/grad_norm": 0.0},
    "same-reward": {"reward/mean": 0.3, "reward/success": 0.0, "reward/zero_signal": 1.0, "optim/grad_norm": 0.0},
    "verifier-fails": WRONG | {"reward/failures": 128.0},
    "all-cut": WRONG | CUT,
    "no-gradient": {"optim/grad_norm": 0.0, "optim/update_ratio": 0.0},
    "weights-still": {"optim/update_ratio": 0.0},
    "gradients-enormous": {"optim/grad_norm": 1e5},
    "gradients-tiny": {"optim/grad_norm": 1e-6},
    "reward-scale": {"reward/mean": 5e4, "optim/grad_norm": 1e5, "policy/lambda_hat": 9.0},
    "mismatch-from-the-start": {"mismatch/k3": 0.05},
    "leap": {"policy/lambda_hat": 22.0},
}
"""What a run looks like from its first step on, and the one thing to be said of it."""


def read(monitor, rows):
    return [finding for step, row in enumerate(rows, start=1) for finding in monitor.read(step, row)]


@pytest.mark.parametrize("rule", FROM_THE_START)
def test_the_first_steps_say_it(rule):
    found = read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL | FROM_THE_START[rule]] * FIRST_STEPS)
    assert found[0].rule == rule
    assert [finding.rule for finding in found] == [rule], "what the cause explains is not said as well"
    assert found[0].onset == 1
    assert found[0].is_absolute
    assert found[0].advice


@pytest.mark.parametrize("rule", sorted(FROM_THE_START.keys() - {"leap", "reward-scale", "verifier-fails"}))
def test_one_step_alone_is_no_finding_of_the_first_minute(rule):
    assert read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL | FROM_THE_START[rule], *[USUAL] * 10]) == []


def test_all_wrong_all_right_and_narrowing_are_three_findings():
    names = ("nothing-solved", "everything-solved", "groups-agree")
    sentences = {read(AbsoluteMonitor(ABSOLUTE_RULES), [USUAL | FROM_THE_START[name]] * 3)[0].meaning for name in names}
    assert len(sentences) == 3


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_says_nothing(seed):
    assert read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL | row for row in healthy(seed, 200)]) == []


def test_a_run_that_learns_everything_says_nothing():
    rows = [USUAL | {"reward/mean": s, "reward/success": s, "reward/zero_signal": s} for s in (0.5, 0.8, 0.95)]
    monitor = AbsoluteMonitor(ABSOLUTE_RULES, RECIPE)
    assert read(monitor, rows + [USUAL | RIGHT] * 20) == []
    assert "no-signal" in monitor.hidden


def test_partial_credit_is_something_to_reinforce():
    shaped = {"reward/success": 0.0, "reward/mean": 0.2, "reward/zero_signal": 0.1}
    assert read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL | shaped] * 30) == []


@pytest.mark.parametrize("rule", ABSOLUTE_RULES, ids=lambda rule: rule.name)
def test_what_is_missing_makes_no_condition_true(rule):
    assert not rule.holds(View({}))
    assert not rule.holds(View({}, settings=RECIPE))


def test_a_reward_that_vanishes_under_the_same_policy_is_the_verifiers():
    found = read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL] * 6 + [USUAL | WRONG] * 10)
    assert [(finding.rule, finding.onset) for finding in found] == [("reward-vanishes", 7)]


def test_a_reward_that_falls_with_the_policy_is_the_steps():
    wrecked = USUAL | WRONG | {"policy/entropy": 4.0}
    found = read(
        AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL] * 6 + [USUAL | {"policy/lambda_hat": 22.0}] + [wrecked] * 5
    )
    assert [(finding.rule, finding.onset) for finding in found] == [("leap", 7), ("reward-falls-at-once", 8)]
    assert "22 nats" in found[0].meaning


def test_a_fall_between_the_first_two_steps_needs_no_history():
    found = read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL] + [USUAL | WRONG] * 4)
    assert found[0].rule == "reward-vanishes"
    assert found[0].onset == 2


def test_only_rewards_logged():
    keys = ("reward/mean", "reward/zero_signal", "policy/entropy")
    rows = [{key: row[key] for key in keys} for row in [USUAL | WRONG] * 3]
    assert read(AbsoluteMonitor(ABSOLUTE_RULES), rows)[0].rule == "nothing-solved"
    rows = [{key: USUAL[key] for key in keys}] * 4 + rows
    assert read(AbsoluteMonitor(ABSOLUTE_RULES), rows)[0].rule == "reward-vanishes"


def test_a_burst_of_failures_counts_its_completions():
    found = read(
        AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [USUAL] * 5 + [USUAL | {"reward/failures": 40.0}] * 2 + [USUAL] * 5
    )
    assert [(finding.rule, finding.step) for finding in found] == [("verifier-bursts", 6)]
    assert "40 of 128" in found[0].meaning


def test_a_log_without_the_number_of_completions_takes_the_recipes():
    row = {key: value for key, value in (USUAL | WRONG).items() if key != "reward/completions"}
    row["reward/failures"] = 128.0
    assert read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE), [row])[0].rule == "verifier-fails"
    assert [f.rule for f in read(AbsoluteMonitor(ABSOLUTE_RULES), [row] * 3)] == ["nothing-solved"]


@pytest.mark.parametrize(
    ("longest", "rule", "advice"),
    [
        (None, "all-cut", "set rollout.max_new_tokens to 40"),
        (48.0, "all-cut", "set rollout.max_new_tokens to 60: the longest worked solution has 48 tokens"),
        (12.0, "nothing-solved", "warm_start.num_steps = 200"),
    ],
)
def test_the_limit_to_set_follows_the_solutions(longest, rule, advice):
    known = RECIPE | ({} if longest is None else {"task.longest_solution": longest})
    found = read(AbsoluteMonitor(ABSOLUTE_RULES, known), [USUAL | WRONG | CUT] * 3)
    assert [finding.rule for finding in found] == [rule]
    assert advice in found[0].advice


def test_a_model_that_never_ends_though_its_solutions_do():
    found = read(AbsoluteMonitor(ABSOLUTE_RULES, RECIPE | {"task.longest_solution": 12.0}), [USUAL | CUT] * 3)
    assert [finding.rule for finding in found] == ["never-ends"]
    assert "limit of 20 tokens" in found[0].meaning


@pytest.mark.parametrize("rule", ["nothing-solved", "everything-solved", "same-reward", "verifier-fails", "all-cut"])
def test_the_evaluation_says_it_before_the_first_step(rule):
    monitor = AbsoluteMonitor(ABSOLUTE_RULES, RECIPE)
    found = monitor.evaluated(USUAL | FROM_THE_START[rule] | {"eval/problems": 16.0})
    assert [finding.rule for finding in found] == [rule]
    assert found[0].sentence().startswith("before training: ")
    assert read(monitor, [USUAL | FROM_THE_START[rule]] * 6) == [], "it is said once"
    assert monitor.withdrawn() == []


def test_what_the_first_steps_do_not_confirm_is_withdrawn_once():
    monitor = AbsoluteMonitor(ABSOLUTE_RULES, RECIPE)
    monitor.evaluated(USUAL | WRONG)
    read(monitor, [USUAL] * 2)
    assert monitor.withdrawn() == []
    read(monitor, [USUAL])
    assert monitor.withdrawn() == ["nothing-solved"]
    assert monitor.withdrawn() == []
    assert not monitor.up


@pytest.mark.parametrize("cut", [1, 2, 4, 8, 9])
def test_a_state_goes_through_json(cut):
    rows = [USUAL] * 3 + [USUAL | {"reward/failures": 40.0}] + [USUAL] * 3 + [USUAL | WRONG] * 4
    whole, first, second = (AbsoluteMonitor(ABSOLUTE_RULES, RECIPE) for _ in range(3))
    for one in (whole, first):
        one.evaluated(USUAL | WRONG)
    expected = [(f.rule, f.onset) for f in read(whole, rows)]
    found = read(first, rows[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [f for step, row in enumerate(rows[cut:], start=cut + 1) for f in second.read(step, row)]
    assert [(f.rule, f.onset) for f in found] == expected
    assert second.state_dict() == whole.state_dict()


def test_events_that_stand():
    said = {"statistic_name": "outright", "action": "note"}
    events = [
        said | {"rule": "nothing-solved", "text": "a"},
        {"rule": "no-signal", "text": "b", "statistic_name": "value", "action": "note"},
        said | {"rule": "leap", "text": "c"},
        said | {"rule": "leap", "text": "d"},
        {"rule": "nothing-solved", "action": "withdrawn", "text": "e"},
    ]
    assert standing(events) == ["c"]


def test_names_are_unique_and_what_is_hidden_exists():
    from heliostat.monitors import default_rules

    names = [rule.name for rule in ABSOLUTE_RULES]
    assert len(set(names)) == len(names)
    known = {*names, *(rule.name for rule in default_rules())}
    assert not set(names) & {rule.name for rule in default_rules()}
    assert {name for rule in ABSOLUTE_RULES for name in rule.hides} <= known


def test_recipe_numbers_are_those_that_are_there():
    assert recipe_numbers({"rollout": {"group_size": 8, "temperature": "hot"}, "train": {}}) == {
        "rollout.group_size": 8.0
    }


# -- environments

TURNS = {
    "environment": {"name": "maze", "tools": ["maze:look"], "max_turns": 4, "max_tokens_per_turn": 16, "max_tokens": 90}
}
IN_TURNS = USUAL | {
    "agent/turns": 3.0,
    "agent/calls": 2.0,
    "agent/valid_calls": 0.5,
    "agent/invalid": 0.0,
    "agent/failed": 0.0,
    "agent/turn_truncated": 0.02,
    "agent/out_of_tokens": 0.0,
    "agent/out_of_turns": 0.03,
}
NO_TURNS = {"name": "", "tools": [], "max_turns": 8, "max_tokens_per_turn": 64, "max_tokens": 512}


def turns_monitor():
    nested = {"rollout": {"max_new_tokens": 20, "group_size": 8}, "warm_start": {"num_steps": 0}}
    return AbsoluteMonitor(ABSOLUTE_RULES, recipe_numbers(nested | TURNS))


def test_limits_of_an_environment_take_the_place_of_the_completions():
    found = turns_monitor().settings
    assert "rollout.max_new_tokens" not in found
    assert found["environment.max_tokens_per_turn"] == 16.0
    assert found["environment.tools"] == 1.0
    plain = {"rollout": {"max_new_tokens": 20}}
    assert recipe_numbers(plain | {"environment": NO_TURNS}) == recipe_numbers(plain)


@pytest.mark.parametrize(
    ("key", "to"),
    [
        ("turn_truncated", "environment.max_tokens_per_turn to 32"),
        ("out_of_tokens", "environment.max_tokens to 180"),
        ("out_of_turns", "environment.max_turns to 8"),
    ],
)
def test_the_limit_that_ends_trajectories_is_named(key, to):
    row = IN_TURNS | WRONG | CUT | {f"agent/{key}": 0.95}
    (finding,) = read(turns_monitor(), [row] * 3)
    assert finding.rule == "episodes-cut"
    assert to in finding.advice
    assert "95% of trajectories" in finding.meaning
    assert "max_new_tokens" not in finding.meaning + finding.advice


def test_the_evaluation_does_not_know_the_limit_and_names_all_three():
    (finding,) = turns_monitor().evaluated(USUAL | WRONG | CUT | {"eval/problems": 16.0})
    assert finding.rule == "episodes-cut"
    for name in ("max_tokens_per_turn", "max_tokens ", "max_turns"):
        assert f"environment.{name}" in finding.advice
    assert "max_new_tokens" not in finding.advice


def test_episodes_that_are_meant_to_last_all_turns_are_no_finding():
    lasting = {"length/truncated": 1.0, "agent/out_of_turns": 1.0}
    monitor = turns_monitor()
    assert monitor.evaluated(USUAL | {"length/truncated": 1.0}) == []
    assert read(monitor, [IN_TURNS | lasting] * 5) == []
    graded = {"reward/success": 0.0, "reward/mean": 0.4}
    assert read(turns_monitor(), [IN_TURNS | lasting | graded] * 5) == []


@pytest.mark.parametrize(
    ("change", "rule", "said"),
    [
        ({"agent/failed": 0.25}, "episodes-fail", "25% of the step's episodes"),
        ({"agent/invalid": 0.95}, "not-understood", "95% of turns"),
        ({"agent/valid_calls": 0.0, "agent/call_errors": 1.0}, "no-valid-calls", "no tool call works"),
        ({"agent/valid_calls": 0.0, "agent/calls": 0.0}, "no-valid-calls", "no turn calls a tool"),
    ],
)
def test_what_goes_wrong_with_environments_is_said(change, rule, said):
    (finding,) = read(turns_monitor(), [IN_TURNS | change] * 4)
    assert finding.rule == rule
    assert said in finding.meaning


def test_an_environment_without_tools_expects_no_calls():
    nested = {"environment": TURNS["environment"] | {"tools": []}}
    monitor = AbsoluteMonitor(ABSOLUTE_RULES, recipe_numbers(nested))
    assert read(monitor, [IN_TURNS | {"agent/calls": 0.0, "agent/valid_calls": 0.0}] * 6) == []


def test_advice_on_a_limit_of_completions_is_hidden_in_several_turns():
    monitor = turns_monitor()
    read(monitor, [IN_TURNS])
    assert "truncation" in monitor.hidden
    other = AbsoluteMonitor(ABSOLUTE_RULES, RECIPE)
    read(other, [USUAL])
    assert "truncation" not in other.hidden


@pytest.mark.parametrize("seed", range(2))
def test_healthy_trajectories_say_nothing(seed):
    assert read(turns_monitor(), [IN_TURNS | row for row in healthy(seed, 100)]) == []


class Result:
    def __init__(self, samples, success, reward, failures=0, cut=0, longest=0):
        self.num_samples, self.num_success, self.mean_reward = samples, success, reward
        self.num_failures, self.num_cut, self.max_length = failures, cut, longest


def test_an_evaluation_as_signals():
    signals = evaluation_signals([Result(4, 0, 0.0, 1, 4, 9), Result(4, 4, 1.0, 0, 2, 7)])
    assert signals["reward/success"] == signals["reward/mean"] == 0.5
    assert signals["reward/failures"] == 1
    assert signals["length/truncated"] == 0.75
    assert signals["length/max"] == 9
    assert signals["reward/zero_signal"] == 0
    assert evaluation_signals([Result(4, 0, 0.0)] * 3)["reward/zero_signal"] == 1
    assert evaluation_signals([Result(4, 2, 0.5)] * 3)["reward/zero_signal"] == 0, "samples of a problem differ"
    assert "length/truncated" not in evaluation_signals([Result(4, 0, 0.0)]), "an earlier version kept no lengths"
    with pytest.raises(ValueError, match="without problems"):
        evaluation_signals([])
