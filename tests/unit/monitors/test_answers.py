from itertools import product

import pytest

from heliostat.monitors.answers import collision, top_share


@pytest.mark.parametrize("probabilities", [(0.5, 0.3, 0.2), (0.9, 0.1), (0.25,) * 4])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_collision_is_unbiased(probabilities, size):
    """Its expectation over every possible group is the chance that two answers agree, exactly."""
    expected = 0.0
    for answers in product(range(len(probabilities)), repeat=size):
        weight = 1.0
        for answer in answers:
            weight *= probabilities[answer]
        expected += weight * collision(answers)
    assert expected == pytest.approx(sum(p * p for p in probabilities), abs=1e-12)


def test_limits():
    assert collision(["a"] * 6) == 1
    assert collision("abcdef") == 0
    assert collision(["a"]) is None
    assert top_share("aab") == 2 / 3
    assert top_share([]) is None
