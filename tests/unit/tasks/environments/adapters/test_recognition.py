"""Classes of every package are told by their methods, whether the class or an object of it is looked at."""

import pytest

from heliostat.tasks.environments.adapters.recognition import recognise
from tests.support.environment_classes import (
    ArenaGuess,
    AsyncTRLSafe,
    Counter,
    GymWalk,
    NoEnvironment,
    SkyRLEcho,
    TRLSafe,
    Undeclared,
    wrapped_arena_guess,
)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Counter, "heliostat"),
        (Undeclared, "reset and step"),
        (TRLSafe, "TRL"),
        (AsyncTRLSafe, "TRL"),
        (SkyRLEcho, "skyrl-gym"),
        (GymWalk, "gymnasium"),
        (ArenaGuess, "textarena"),
    ],
)
def test_shapes(cls, name):
    made = cls(extras={"reward_spec": {"ground_truth": ""}}) if cls is SkyRLEcho else cls()
    assert recognise(cls).name == recognise(made).name == name


def test_a_wrapper_is_recognised_by_what_it_passes_on():
    assert recognise(wrapped_arena_guess()).name == "textarena"


def test_anything_else_is_refused():
    with pytest.raises(ValueError, match="'NoEnvironment' is no environment: it needs reset\\(problem, seed\\) and"):
        recognise(NoEnvironment)
