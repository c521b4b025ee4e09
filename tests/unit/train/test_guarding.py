"""What the guard leaves of the learning rate: after a rollback, after quiet steps, while sampler and trainer differ."""

import json

import pytest

from heliostat.config import GuardSection
from heliostat.monitors.guard import not_finite
from heliostat.train.guarding import MISMATCH_CUT, RECOVERY_STEPS, RunGuard

FINE = {"reward/mean": 0.5, "policy/entropy": 0.5, "mismatch/ess": 1.0}


def make(mode="act", **settings):
    section = GuardSection(mode=mode, panel_every=0, **settings)
    return RunGuard(section, folder=None, note=lambda text: None, writes=False)


def went_back(guard, step, to):
    guard.order = not_finite(step, "reward/mean", "broken")
    guard.went_back(step, to, guard.state_dict(to), [])


def test_a_halved_step_comes_back_after_quiet_steps():
    guard = make()
    went_back(guard, 10, 5)
    went_back(guard, 9, 5)
    scales = []
    for step in range(6, 6 + 3 * RECOVERY_STEPS):
        scales.append(guard.step_scale)
        guard.act(step, FINE)
    assert scales == [0.25] * RECOVERY_STEPS + [0.5] * RECOVERY_STEPS + [1.0] * RECOVERY_STEPS
    assert guard.num_rollbacks == 2, "tries are counted over the whole run"


def test_another_alarm_starts_the_wait_again():
    guard = make()
    went_back(guard, 10, 5)
    for step in range(6, 5 + RECOVERY_STEPS):
        guard.act(step, FINE)
    went_back(guard, 24, 5)
    for step in range(6, 5 + RECOVERY_STEPS):
        guard.act(step, FINE)
    assert guard.step_scale == 0.25


@pytest.mark.parametrize(("mode", "cut"), [("act", MISMATCH_CUT), ("shadow", 1.0)])
def test_a_mismatch_makes_steps_small_while_it_lasts_and_only_where_the_guard_may(mode, cut):
    guard = make(mode)
    scales = []
    for step in range(1, 7):
        guard.act(step, FINE | {"mismatch/ess": 0.2 if step in (2, 3) else 1.0})
        scales.append(guard.step_scale)
    assert scales == [1.0, cut, cut, 1.0, 1.0, 1.0]


def test_a_guard_that_failed_leaves_steps_alone():
    guard = make()
    guard.act(1, FINE | {"mismatch/ess": 0.2})
    assert guard.step_scale == MISMATCH_CUT
    guard.disabled = "ZeroDivisionError: a bug"
    assert guard.step_scale == 1.0


def test_waiting_continues_from_a_checkpoint():
    guard, again = make(), make()
    went_back(guard, 10, 5)
    for step in range(6, 16):
        guard.act(step, FINE)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict(15))))
    for step in range(16, 6 + RECOVERY_STEPS):
        guard.act(step, FINE)
        again.act(step, FINE)
        assert again.step_scale == guard.step_scale
    assert again.step_scale == 1.0


def test_reward_that_held_out_problems_do_not_confirm():
    guard = make("shadow")
    guard.section = GuardSection(panel_every=1)
    guard.panel = lambda: {"panel/pass@1": 0.4, "panel/reward": 0.4}
    looks = [guard.act(step, FINE | {"reward/mean": reward}) for step, reward in enumerate((0.5, 0.6, 0.85), start=1)]
    assert [look["panel/gap"] for look in looks] == pytest.approx([0.1, 0.2, 0.45])
    assert set(guard.guard.alarmed) == {"unconfirmed"}
