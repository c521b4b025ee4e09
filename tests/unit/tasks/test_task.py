"""How scores become a verdict: weights, full marks, shaped rewards, failures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.tasks.task import FULL_MARKS_WITHIN, Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import Exact
from tests.support.tasks import make_task

weights = st.floats(0, 10, allow_nan=False)
scores = st.one_of(st.none(), st.just(1.0), st.floats(-5, 5, allow_nan=False))


def task_of(*given_weights: float, shaped: bool = False) -> Task:
    verifiers = [WeightedVerifier(f"v{number}", Exact(), weight) for number, weight in enumerate(given_weights)]
    return make_task(*verifiers, shaped=shaped)


@given(st.lists(st.tuples(weights, scores), min_size=1, max_size=5))
def test_the_shaped_reward_is_the_weighted_sum_of_what_applies(pairs: list[tuple[float, float | None]]) -> None:
    named = {f"v{number}": score for number, (_, score) in enumerate(pairs)}
    counted = [(weight, score) for weight, score in pairs if weight > 0 and score is not None]
    plain, shaped = (task_of(*(weight for weight, _ in pairs), shaped=flag).verdict(named) for flag in (False, True))
    if not counted:
        assert plain.failure == shaped.failure == "no verifier applies to this problem"
        return
    full = all(abs(score - 1) <= 1e-9 for _, score in counted)
    assert plain.success == shaped.success == full
    assert plain.reward == float(full)
    assert shaped.reward == pytest.approx(math.fsum(weight * score for weight, score in counted), abs=1e-9)
    assert plain.scores == {name: score for name, score in named.items() if score is not None}


@pytest.mark.parametrize(
    ("score", "full"),
    [
        (1.0, True),
        (sum([0.1] * 10), True),
        (0.1 * 3 + 0.7, True),
        (1 - 0.9e-9, True),
        (1 + 0.9e-9, True),
        (1 - 1.1e-9, False),
        (1 + 1.1e-9, False),
        (0.9999999, False),
        (1.1, False),
        (-1.0, False),
        (0.0, False),
    ],
)
def test_a_score_within_a_billionth_of_one_is_full_marks(score: float, full: bool) -> None:
    assert FULL_MARKS_WITHIN == 1e-9
    verdict = task_of(1.0).verdict({"v0": score})
    assert (verdict.success, verdict.reward) == (full, float(full))
    assert verdict.scores == {"v0": score}


def test_a_verifier_without_weight_is_recorded_and_decides_nothing() -> None:
    for shaped in (False, True):
        verdict = task_of(2.0, 0.0, shaped=shaped).verdict({"v0": 1.0, "v1": -3.0})
        assert (verdict.success, verdict.reward) == (True, 2.0 if shaped else 1.0)
        assert verdict.scores == {"v0": 1.0, "v1": -3.0}


def test_a_failure_costs_everything_whatever_the_others_said() -> None:
    for shaped in (False, True):
        verdict = task_of(1.0, 1.0, shaped=shaped).verdict({"v0": 1.0}, "verifier 'v1' raised")
        assert (verdict.success, verdict.reward, verdict.failure) == (False, 0.0, "verifier 'v1' raised")
