"""The promise: every optimizer can be named in a recipe, and a run with it trains, saves and continues."""

import pytest

from heliostat.optim import optimizer_names
from tests.promises import small

SMALL = {
    "warm_start.num_steps": 3,
    "rollout.prompts_per_step": 4,
    "train.num_steps": 3,
    "train.updates_per_step": 1,
    "train.checkpoint_every": 2,
    "eval.every": 0,
    "eval.final_samples": 1,
}


@pytest.mark.parametrize("name", sorted(set(optimizer_names()) - {"adamw", "sgd"}))
def test_a_run_with_it_trains(name, tmp_path):
    import heliostat

    overrides = {**SMALL, "optimizer.name": name, "optimizer.lr": 1e-3, "run.root": str(tmp_path), "run.name": name}
    recipe = heliostat.load_recipe(str(small.write_recipe(tmp_path)), overrides)
    heliostat.post_train(recipe)
    lines = [line for line in small.metrics(tmp_path / name) if line["step"] > 0]
    assert len(lines) == 3
    assert all(line["optim/bad_steps"] == 0 for line in lines)
    assert any(line["policy/max_log_ratio"] > 0 for line in lines), "the weights moved"
