"""From a recipe to the parts of a run: what is refused before data or weights are touched."""

import pytest

from heliostat.config import ConfigError, build_recipe
from heliostat.objectives.registry import OBJECTIVES
from heliostat.train.setup import check_recipe


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
