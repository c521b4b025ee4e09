"""From a recipe to the parts of a run: what is refused before data or weights are touched."""

from typing import get_args, get_type_hints

import pytest

from heliostat.config import ConfigError, build_recipe, load_recipe
from heliostat.objectives.registry import OBJECTIVES
from heliostat.train.checks.recipe import check_recipe


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_group_of_one_is_refused_for_every_objective(name):
    overrides = {"objective.name": name, "rollout.group_size": 1}
    with pytest.raises(ConfigError, match=rf"rollout.group_size = 1 leaves nothing to learn from: objective '{name}'"):
        check_recipe(build_recipe({}, overrides))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_group_of_two_is_enough_for_every_objective(name):
    assert check_recipe(build_recipe({}, {"objective.name": name, "rollout.group_size": 2})).name == name


def test_supervised_training_alone_samples_no_groups():
    check_recipe(build_recipe({}, {"rollout.group_size": 1, "train.num_steps": 0, "warm_start.num_steps": 3}))


def _group_baselines():
    """Every objective with every value of the settings that choose its baseline."""
    for name, objective in OBJECTIVES.items():
        kinds = get_type_hints(objective)
        choices = {key: get_args(kinds[key]) for key in ("baseline",) if key in kinds}
        choices |= {key: (True, False) for key in ("leave_one_out",) if key in kinds}
        yield from ((name, key, value) for key, values in choices.items() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "value"), _group_baselines())
@pytest.mark.parametrize("given", [dict, lambda settings: [f"--{key}={value}" for key, value in settings.items()]])
def test_a_group_of_one_is_refused_whatever_the_baseline_and_however_it_is_given(name, key, value, given):
    settings = {"objective.name": name, f"objective.{key}": value, "rollout.group_size": 1}
    if not isinstance(value, str) and given is not dict:
        settings[f"objective.{key}"] = str(value).lower()
    with pytest.raises(ConfigError, match="group_size = 1 leaves nothing to learn from"):
        check_recipe(load_recipe("minimal", given(settings)))
    check_recipe(load_recipe("minimal", given({**settings, "rollout.group_size": 2})))
