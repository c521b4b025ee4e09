"""Random states of instances are put in place and taken away, in every order of calls."""

import contextlib
import random
import subprocess
import sys

import numpy as np
import pytest

from heliostat.tasks.environments.random_state import RandomState


@pytest.fixture(autouse=True)
def own_generators():
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


def draw(state: RandomState, num: int = 1, *, keeps: bool = True) -> list[float]:
    with state.active(keeps=keeps):
        return [value for _ in range(num) for value in (random.random(), float(np.random.rand()))]  # noqa: NPY002


def test_draws_depend_on_the_seed_and_the_own_draws_alone() -> None:
    alone = draw(RandomState(3), 4)
    first, second, other = RandomState(3), RandomState(3), RandomState(4)
    interleaved = [draw(each) for _ in range(4) for each in (first, other, second)]
    assert [value for draws in interleaved[0::3] for value in draws] == alone
    assert [value for draws in interleaved[2::3] for value in draws] == alone
    assert interleaved[0] != interleaved[1]


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 7, 2**63 - 1])
def test_any_seed_will_do(seed: int) -> None:
    assert draw(RandomState(seed)) == draw(RandomState(seed))


def test_draws_that_do_not_count_leave_the_state_as_it_was() -> None:
    state, expected = RandomState(1), draw(RandomState(1), 3)
    assert draw(state, 1) == expected[:2]
    assert draw(state, 5, keeps=False)[:2] == expected[2:4]
    assert draw(state, 2) == expected[2:]


def test_a_state_is_kept_when_a_call_raises() -> None:
    state, expected = RandomState(1), draw(RandomState(1), 2)
    with contextlib.suppress(KeyError), state.active():
        print(random.random(), np.random.rand())  # noqa: NPY002
        raise KeyError
    assert draw(state) == expected[2:]


LATE = """
import random, sys
from heliostat.tasks.environments.random_state import RandomState
assert "numpy" not in sys.modules
state = RandomState(9)
with state.active():
    random.random()
finders = list(sys.meta_path)
with state.active():
    import numpy
    first = numpy.random.rand(), random.random()
assert sys.meta_path == finders[:len(sys.meta_path)], sys.meta_path
other = RandomState(9)
with other.active():
    random.random()
    assert (numpy.random.rand(), random.random()) == first
with state.active():
    second = numpy.random.rand()
with other.active():
    assert numpy.random.rand() == second
"""


@pytest.mark.slow
def test_a_call_that_imports_numpy_draws_as_if_it_had_been_there() -> None:
    subprocess.run([sys.executable, "-c", LATE], check=True)
