"""Several processes train what one trains: started by torchrun, over gloo, from the command line's own entry."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.promises import small

SHORT = {
    "--train.num_steps": 4,
    "--train.checkpoint_every": 2,
    "--warm_start.num_steps": 6,
    "--eval.every": 2,
    "--optimizer.name": "sgd",  # Adam's first steps are signs: rounding of a tiny gradient would show
    "--optimizer.lr": 0.5,
    "--guard.panel_every": 2,
    "--guard.panel_problems": 8,
}


def torchrun(recipe, run_dir, num_ranks=2, **options):
    words = [str(word) for pair in {**SHORT, **options}.items() for word in pair]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m", "--"]
    launch = launch if num_ranks > 1 else ["-m"]
    return [sys.executable, *launch, "heliostat", "train", str(recipe), "--run", str(run_dir), *words]


def run(*args, **options):
    return subprocess.run(
        torchrun(*args, **options), env=small.environment(), text=True, capture_output=True, timeout=240
    )


def weights(run_dir):
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(run_dir / "model/model.safetensors").items())])


def same_curves(one, two):
    """Every number of every step, to float tolerance."""
    ours, theirs = small.metrics(one), small.metrics(two)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in mine.items():
            assert other[key] == pytest.approx(value, rel=2e-3, abs=2e-4), (mine["step"], key)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    recipe = small.write_recipe(folder)
    done = run(recipe, folder / "run", num_ranks=1)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "run", recipe


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_ranks_train_what_one_trains(alone, tmp_path, kind):
    whole, recipe = alone
    done = run(recipe, tmp_path / "run", **{"--distributed.weights": kind})
    assert done.returncode == 0, done.stderr + done.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4
    assert done.stdout.count("run folder:") == 1
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text()) == json.loads(
        (whole / "model" / "config.json").read_text()
    )
