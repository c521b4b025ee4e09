"""The simulation agrees with the formulas where there are any, and never gains from waiting."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.scaling import asynchronous_s, heavy_tailed, simulate, synchronous_s

DURATIONS = st.lists(st.floats(0.1, 50.0), min_size=24, max_size=24)


@settings(max_examples=60, deadline=None)
@given(DURATIONS, st.integers(1, 6), st.integers(1, 8), st.floats(0.0, 40.0))
def test_without_staleness_times_add_up(durations, batch_size, num_slots, train_s):
    run = simulate(durations, batch_size, num_slots, train_s, bound=0)
    assert run.update_s == pytest.approx(synchronous_s(durations, batch_size, num_slots, train_s))
    assert run.mean_staleness == 0


@settings(max_examples=60, deadline=None)
@given(DURATIONS, st.integers(1, 6), st.integers(1, 8), st.floats(0.0, 40.0))
def test_more_staleness_is_never_slower_and_the_bound_holds(durations, batch_size, num_slots, train_s):
    runs = [simulate(durations, batch_size, num_slots, train_s, bound) for bound in (0, 1, 2, 4, 24, 100)]
    for tighter, looser in pairwise(runs):
        assert looser.update_s <= tighter.update_s * (1 + 1e-12)
    for run, bound in zip(runs, (0, 1, 2, 4, 24, 100), strict=True):
        assert 0 <= run.mean_staleness <= bound
    assert runs[-1] == runs[-2]  # a bound of the number of updates binds nothing


@pytest.mark.parametrize(("train_s", "slower"), [(20.0, "sampler"), (200.0, "trainer")])
def test_without_a_bound_the_slower_side_decides(train_s, slower):
    durations = heavy_tailed(64 * 400, mean=30.0, spread=1.0, longest=300.0)
    run = simulate(durations, 64, 16, train_s, bound=400, skipped=100)
    assert run.update_s == pytest.approx(asynchronous_s(durations, 64, 16, train_s), rel=0.03)
    assert getattr(run, f"{slower}_busy") == pytest.approx(1.0, abs=0.03)


@settings(max_examples=40, deadline=None)
@given(DURATIONS, st.floats(0.1, 40.0))
def test_one_step_ahead_each_pair_takes_as_long_as_the_slower(durations, train_s):
    """One slot, batches of one: sampling ``k + 1`` and training ``k`` begin together."""
    run = simulate(durations, 1, 1, train_s, bound=1)
    expected = durations[0] + sum(max(one, train_s) for one in durations[1:]) + train_s
    assert run.update_s * len(durations) == pytest.approx(expected)


def test_equal_lengths_gain_all_they_can_from_one_step():
    run = simulate([10.0] * 400, 4, 4, 7.0, bound=1, skipped=20)
    assert run.update_s == pytest.approx(max(10.0, 7.0))
    assert simulate([10.0] * 400, 4, 4, 7.0, bound=0, skipped=20).update_s == pytest.approx(17.0)


def test_a_tail_needs_more_than_one_step():
    durations = heavy_tailed(64 * 200, mean=10.0, spread=1.0, longest=80.0)
    one, many = (simulate(durations, 64, 64, 5.0, bound, skipped=50).update_s for bound in (1, 8))
    assert one > 2 * many


def test_lengths_are_cut_off_and_equal_without_spread():
    assert heavy_tailed(5, 10.0, 0.0, 100.0) == [10.0] * 5
    lengths = heavy_tailed(20_000, 10.0, 0.8, 1e9)
    assert sum(lengths) / len(lengths) == pytest.approx(10.0, rel=0.05)
    assert max(heavy_tailed(1000, 10.0, 1.0, 40.0)) == 40.0


def test_a_clock_that_never_starts_is_refused():
    with pytest.raises(ValueError, match="leaves nothing of 2 updates"):
        simulate([1.0] * 8, 4, 4, 1.0, bound=1, skipped=2)
