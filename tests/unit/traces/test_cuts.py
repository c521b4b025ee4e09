"""Cutting policies: what each gives, and what must hold of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.config import ConfigError
from heliostat.traces.cuts import (
    POLICIES,
    Annealed,
    Backtracking,
    Band,
    PrefixSource,
    Targeted,
    build_cut_policy,
    cut_prefix_source,
)

NAMES = sorted(POLICIES)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 2**31),
    st.integers(0, 500),
    st.lists(st.floats(0, 1), max_size=6),
    st.integers(2, 60),
    st.integers(0, 60),
)
def test_cut_and_continuation_are_the_turn_and_resume_cuts_the_same(name, seed, step, history, num_tokens, given_away):
    turn = tuple(range(num_tokens))
    donor = PrefixSource("p", turn[: min(given_away, num_tokens - 1)], num_tokens)
    policy, resumed = build_cut_policy(name, {}), build_cut_policy(name, {})
    for success in history:
        policy.update("p", success)
    resumed.load_state_dict(policy.state_dict())
    for index in range(policy.per_problem):
        share = policy.share("p", index, seed, step)
        assert 0 <= share <= 1
        assert resumed.share("p", index, seed, step) == share
        prefix = cut_prefix_source(donor, share)
        assert prefix + turn[len(prefix) :] == turn
        assert len(prefix) <= len(donor.ids)
        assert len(prefix) == min(round(share * num_tokens), len(donor.ids))


def test_the_band_is_filled_evenly_and_drawn_once():
    band = Band()
    shares = np.array([band.share(f"p{n}", index, 7, step=0) for n in range(400) for index in range(3)])
    assert shares.min() >= 0.4
    assert shares.max() <= 0.8
    assert abs(shares.mean() - 0.6) < 4 * 0.4 / np.sqrt(12 * shares.size)
    assert len(np.unique(shares)) == shares.size
    assert [band.share("p1", 1, 7, step) for step in (0, 5)] == [band.share("p1", 1, 7, 99)] * 2
    assert band.share("p1", 1, 8, 0) != band.share("p1", 1, 7, 0)


def test_annealing_goes_from_start_to_end_and_stays():
    annealed = Annealed(start=0.8, end=0.2, num_steps=10)
    assert [annealed.share("p", 0, 0, step) for step in (0, 5, 10, 50)] == pytest.approx([0.8, 0.5, 0.2, 0.2])


def test_the_target_is_found_where_success_grows_with_the_share():
    """Success equal to the share: the target rate is reached at the share of that size."""
    policy = Targeted(target=0.3, gain=0.5, start=0.9)
    for _ in range(60):
        policy.update("p", policy.share("p", 0, 0, 0))
    assert policy.share("p", 0, 0, 0) == pytest.approx(0.3, abs=1e-6)
    policy.update("q", 1.0)
    assert policy.share("q", 0, 0, 0) == pytest.approx(0.9 - 0.5 * 0.7)
    assert policy.share("r", 0, 0, 0) == 0.9
    at_target = Targeted(target=0.5)
    at_target.update("p", 0.5)
    assert at_target.share("p", 0, 0, 0) == at_target.start


def test_backtracking_goes_back_on_success_only():
    policy = Backtracking(start=0.9, stride=0.4, target=0.5)
    policy.update("p", 0.4)
    assert policy.share("p", 0, 0, 0) == 0.9
    for _ in range(4):
        policy.update("p", 0.5)
    assert policy.share("p", 0, 0, 0) == 0.0


def test_cuts_snap_to_where_a_step_ends():
    donor = PrefixSource("p", tuple(range(10)), 20)
    assert len(cut_prefix_source(donor, 0.3, boundaries=(2, 5, 9, 15))) == 5
    assert len(cut_prefix_source(donor, 0.9, boundaries=(2, 5, 9, 15))) == 9
    assert len(cut_prefix_source(donor, 0.9, boundaries=())) == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bnad", {}, "did you mean 'band'"),
        ("band", {"lo": 0.1}, "prefix.lo"),
        ("band", {"low": 0.9, "high": 0.2}, "low <= high"),
        ("band", {"high": 1.5}, "between 0 and 1"),
        ("annealed", {"num_steps": 0}, "at least 1"),
        ("targeted", {"gain": 0.0}, "gain"),
        ("backtracking", {"stride": 2.0}, "stride"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_cut_policy(name, settings)
