import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.monitors import repetition
from heliostat.monitors.repetition import compressed_share, distinct_share, loop_period, repeated_share


def brute_repeated(tokens, n):
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return None if not grams else sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repeated_share_counts_what_was_written_before(tokens, n):
    expected = brute_repeated(tokens, n)
    assert repeated_share(tokens, n) == (expected if expected is None else pytest.approx(expected))


def test_repeated_share_limits():
    assert repeated_share(range(20), 4) == 0
    assert repeated_share([7] * 20, 4) == pytest.approx(1 - 1 / 17)
    assert repeated_share([1, 2, 3], 4) is None


def brute_period(tokens):
    if len(tokens) < repetition.MIN_LOOP_TOKENS:
        return None
    tail = list(tokens)[-repetition.LOOP_WINDOW :]
    for period in range(1, min(repetition.MAX_PERIOD, len(tail) // 2) + 1):
        matches = [tail[i] == tail[i - period] for i in range(period, len(tail))]
        if sum(matches) / len(matches) > repetition.LOOP_MATCH:
            return period
    return None


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(30, 400), st.floats(0, 0.15), st.integers(2, 50))
def test_loops_are_those_of_the_definition(seed, period, length, noise, vocabulary):
    """The early way out must never hide a loop: noise around the threshold, periods around the limit."""
    rng = np.random.default_rng(seed)
    tokens = np.resize(rng.integers(0, vocabulary, period), length)
    tokens = np.where(rng.random(length) < noise / 2, rng.integers(0, vocabulary, length), tokens)
    assert loop_period(tokens.tolist()) == brute_period(tokens.tolist())


def test_loop_limits():
    assert loop_period([5] * 31) is None
    assert loop_period([5] * 32) == 1
    assert loop_period([*range(1000, 1300), *([1, 2, 3] * 100)]) == 3
    assert loop_period(list(range(300))) is None
    assert loop_period(list(range(65)) * 8) is None


def test_distinct_share():
    assert distinct_share([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4
    one = [1, 2, 1, 2, 3]
    assert distinct_share([one], 2) == pytest.approx(1 - repeated_share(one, 2))
    assert distinct_share([one] * 5, 2) == pytest.approx(distinct_share([one], 2) / 5)
    assert distinct_share([[1], []], 2) is None


def test_compression():
    assert compressed_share("") is None
    assert compressed_share("ab" * 500) == len(zlib.compress(b"ab" * 500, 1)) / 1000 < 0.05
    assert compressed_share("ab" * 500) < compressed_share("the cat sat on the mat, and it was a good mat")
