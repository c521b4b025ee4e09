"""What the guard leaves of the learning rate: after a rollback, after quiet steps, while sampler and trainer differ."""

import json

import pytest

from heliostat.config import GuardSection
from heliostat.monitors.guard import not_finite
from heliostat.train.guard.run_guard import MISMATCH_CUT, RECOVERY_STEPS, RunGuard

FINE = {"reward/mean": 0.5, "policy/entropy": 0.5, "mismatch/ess": 1.0}


def make(mode="act", **settings):
    section = GuardSection(mode=mode, panel_every=0, **settings)
    return RunGuard(section, folder=None, note=lambda text: None, writes=False)


def went_back(guard, step, to):
    guard.pending_rollback = not_finite(step, "reward/mean", "broken")
    guard.record_rollback(step, to, [])


def test_a_halved_step_comes_back_after_quiet_steps():
    guard = make()
    went_back(guard, 10, 5)
    went_back(guard, 9, 5)
    scales = []
    for step in range(6, 6 + 3 * RECOVERY_STEPS):
        scales.append(guard.step_scale)
        guard.observe(step, FINE)
    assert scales == [0.25] * RECOVERY_STEPS + [0.5] * RECOVERY_STEPS + [1.0] * RECOVERY_STEPS
    assert guard.num_rollbacks == 2, "tries are counted over the whole run"


def test_another_alarm_starts_the_wait_again():
    guard = make()
    went_back(guard, 10, 5)
    for step in range(6, 5 + RECOVERY_STEPS):
        guard.observe(step, FINE)
    went_back(guard, 24, 5)
    for step in range(6, 5 + RECOVERY_STEPS):
        guard.observe(step, FINE)
    assert guard.step_scale == 0.25


@pytest.mark.parametrize(("mode", "cut"), [("act", MISMATCH_CUT), ("shadow", 1.0)])
def test_a_mismatch_makes_steps_small_while_it_lasts_and_only_where_the_guard_may(mode, cut):
    guard = make(mode)
    scales = []
    for step in range(1, 7):
        guard.observe(step, FINE | {"mismatch/ess": 0.2 if step in (2, 3) else 1.0})
        scales.append(guard.step_scale)
    assert scales == [1.0, cut, cut, 1.0, 1.0, 1.0]


def long_step(guard, step, ratio):
    return guard.observe(step, FINE | {"optim/update_ratio": ratio})


def test_a_step_is_cut_by_as_much_as_it_was_too_long():
    guard = make(baseline_start=0, baseline_steps=5)
    for step in range(1, 21):
        long_step(guard, step, 0.001)
    long_step(guard, 21, 0.010)
    assert guard.pending_rollback.excess == pytest.approx(10.0)
    guard.record_rollback(21, 10, [])
    assert guard.step_scale == pytest.approx(0.1)


def test_steps_that_the_guard_itself_shortened_do_not_become_normal():
    guard = make(baseline_start=0, baseline_steps=5)
    for step in range(1, 21):
        long_step(guard, step, 0.001)
    went_back(guard, 21, 10)
    guard.lr_scale = 0.125
    for step in range(11, 11 + 3 * RECOVERY_STEPS):
        assert long_step(guard, step, 0.001 * guard.step_scale)["guard/step_scale"] < 1.0
    assert guard.step_scale == 1.0
    long_step(guard, 80, 0.001)
    assert guard.pending_rollback is None, "back at its own rate, a step of the usual length is no alarm"
    long_step(guard, 81, 0.0041)
    assert guard.pending_rollback is not None


def test_a_guard_that_failed_leaves_steps_alone():
    guard = make()
    guard.observe(1, FINE | {"mismatch/ess": 0.2})
    assert guard.step_scale == MISMATCH_CUT
    guard.disabled = "ZeroDivisionError: a bug"
    assert guard.step_scale == 1.0


def test_waiting_continues_from_a_checkpoint():
    guard, again = make(), make()
    went_back(guard, 10, 5)
    for step in range(6, 16):
        guard.observe(step, FINE)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict(15))))
    for step in range(16, 6 + RECOVERY_STEPS):
        guard.observe(step, FINE)
        again.observe(step, FINE)
        assert again.step_scale == guard.step_scale
    assert again.step_scale == 1.0


def test_reward_that_held_out_problems_do_not_confirm():
    guard = make("shadow")
    guard.section = GuardSection(panel_every=2)
    guard.panel = lambda: {"panel/pass@1": 0.4, "panel/reward": 0.4}
    rewards = (0.4, 0.6, 0.4, 0.6, 0.5, 0.5, 0.6, 0.8, 0.7, 0.9)
    looks = [guard.observe(step, FINE | {"reward/mean": reward}) for step, reward in enumerate(rewards, start=1)]
    gaps = [look["panel/gap"] for look in looks if "panel/gap" in look]
    assert gaps == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.4]), "each panel against all steps since the last"
    assert set(guard.guard.alarmed) == {"unconfirmed"}


def test_rewards_since_the_last_panel_are_in_the_checkpoint():
    guard, again = make("shadow"), make("shadow")
    for one in (guard, again):
        one.section = GuardSection(panel_every=4)
        one.panel = lambda: {"panel/reward": 0.0}
    for step, reward in enumerate((0.2, 0.4), start=1):
        guard.observe(step, FINE | {"reward/mean": reward})
    again.load_judgement(json.loads(json.dumps(guard.judgement())))
    again.observe(3, FINE | {"reward/mean": 0.6})
    assert again.observe(4, FINE | {"reward/mean": 0.8})["panel/gap"] == pytest.approx(0.5)


WRONG = FINE | {"reward/success": 0.0, "reward/mean": 0.0, "reward/zero_signal": 1.0}
LEAP = FINE | {"policy/lambda_hat": 22.0}


@pytest.mark.parametrize(("mode", "orders"), [("act", True), ("shadow", False), ("off", False)])
def test_a_leap_in_the_first_step_asks_for_going_back_where_the_guard_may(mode, orders):
    said = []
    guard = make(mode)
    guard.writes, guard.note, guard.folder = True, said.append, FakeFolder()
    guard.observe(1, LEAP)
    assert (guard.pending_rollback is not None) is orders
    assert "22 nats" in said[0]
    assert ("in mode act: rollback" in said[0]) is (mode == "shadow")


class FakeFolder:
    """Takes events and keeps them."""

    def __init__(self, path=None):
        self.events, self.rows = path, []

    def append(self, path, rows):
        self.rows += rows


def test_what_the_evaluation_said_survives_a_checkpoint(tmp_path):
    before, after = make("shadow"), make("shadow")
    for guard in (before, after):
        guard.writes, guard.folder = True, FakeFolder(tmp_path / "events.jsonl")
    before.first_look(WRONG)
    before.observe(1, WRONG)
    after.load_judgement(json.loads(json.dumps(before.judgement())))
    after.first_look(WRONG)
    for step in (2, 3, 4):
        after.observe(step, WRONG)
    assert [row["rule"] for row in before.folder.rows] == ["nothing-solved"]
    assert after.folder.rows == []


def test_what_the_steps_do_not_confirm_is_withdrawn(tmp_path):
    guard = make("off")
    guard.writes, guard.folder = True, FakeFolder(tmp_path / "events.jsonl")
    guard.first_look(WRONG)
    for step in (1, 2, 3, 4):
        guard.observe(step, FINE | {"reward/success": 0.3, "reward/zero_signal": 0.4})
    assert [(row["rule"], row["action"]) for row in guard.folder.rows] == [
        ("nothing-solved", "note"),
        ("nothing-solved", "withdrawn"),
    ]


def test_a_checkpoint_of_an_earlier_version_has_no_outright_state():
    guard = make("shadow")
    state = guard.judgement()
    del state["outright"]
    make("shadow").load_judgement(state)
