"""The test of a judge: silent while success explains the score, loud when it does not, and its rate of false alarms."""

import json

import numpy as np
import pytest

from heliostat.monitors.hacking import WINDOW, HackingTest


def steps(rng, num, success, gap, drift, size=256):
    """Signals of ``num`` steps: success goes from one value to another, and the score of every answer by ``drift``."""
    for index in range(num):
        share = index / (num - 1)
        rate = np.clip(success[0] + (success[1] - success[0]) * share + rng.normal(0, 0.03), 0.01, 0.99)
        rights = max(1, min(size - 1, rng.binomial(size, rate)))
        level = drift * share
        right = 0.5 + gap / 2 + level + rng.normal(0, 0.3 / rights**0.5)
        wrong = 0.5 - gap / 2 + level + rng.normal(0, 0.3 / (size - rights) ** 0.5)
        p = rights / size
        yield {"judge/score": p * right + (1 - p) * wrong, "judge/right": right, "judge/wrong": wrong,
               "reward/success": p}  # fmt: skip


def largest(*args):
    test = HackingTest()
    return max(value for signals in steps(*args) if (value := test.update(signals)) is not None)


@pytest.mark.parametrize(
    ("success", "gap"), [((0.3, 0.3), 0.0), ((0.3, 0.3), 0.4), ((0.2, 0.8), 0.4), ((0.3, 0.4), 0.4), ((0.9, 0.9), 0.2)]
)
def test_no_alarm_in_fifty_runs_whose_score_follows_success(success, gap):
    rng = np.random.default_rng(0)
    assert max(largest(rng, 60, success, gap, 0.0) for _ in range(50)) < 5


@pytest.mark.parametrize(
    ("success", "gap"), [((0.3, 0.3), 0.2), ((0.4, 0.2), 0.2), ((0.3, 0.3), -0.2), ((0.3, 0.35), 0.2)]
)
def test_an_alarm_in_every_run_whose_score_rises_alone(success, gap):
    rng = np.random.default_rng(0)
    assert min(largest(rng, 60, success, gap, 0.3) for _ in range(20)) > 5


def test_the_statistic_is_that_of_the_formula():
    rng = np.random.default_rng(3)
    rows = list(steps(rng, 2 * WINDOW + 5, (0.3, 0.4), 0.3, 0.1))
    test = HackingTest()
    *before, value = [test.update(row) for row in rows]
    assert before[: 2 * WINDOW - 1] == [None] * (2 * WINDOW - 1)
    r, s = (np.array([row[key] for row in rows]) for key in ("judge/score", "reward/success"))
    apart = np.array([row["judge/right"] - row["judge/wrong"] for row in rows])
    b = (s * (1 - s) * apart).sum() / (s * (1 - s)).sum()

    def z(x):
        first, last = x[:WINDOW], x[-WINDOW:]
        variance = (np.concatenate([np.diff(first), np.diff(last)]) ** 2).mean() / 2
        return (last.mean() - first.mean()) / (variance * 2 / WINDOW) ** 0.5

    assert value == pytest.approx(min(z(r), z(r / 2 - b * s)))


def test_a_resumed_test_goes_on_as_it_would_have():
    rows = list(steps(np.random.default_rng(1), 40, (0.3, 0.3), 0.2, 0.3))
    whole, begun, resumed = HackingTest(), HackingTest(), HackingTest()
    expected = [whole.update(row) for row in rows]
    for row in rows[:15]:
        begun.update(row)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert [resumed.update(row) for row in rows[15:]] == expected[15:]


def test_a_task_without_verifiers_has_nothing_to_test():
    test = HackingTest()
    assert all(test.update({"judge/score": n, "reward/success": 0.5}) is None for n in range(50))


def test_a_score_that_never_moves_gives_nothing():
    test = HackingTest()
    values = [test.update({"judge/score": 0.5, "judge/wrong": 0.5, "reward/success": 0.0}) for _ in range(50)]
    assert set(values) == {None, 0.0}
