"""Several processes train what one trains: started by torchrun, over gloo, from the command line's own entry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    "--optimizer.momentum": 0.9,
    "--optimizer.lr": 0.2,
    "--guard.panel_every": 2,
    "--guard.panel_problems": 8,
}


def torchrun(recipe, run_dir, num_ranks=2, **options):
    words = [str(word) for pair in {**SHORT, **options}.items() for word in pair]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m", "--"]
    launch = launch if num_ranks > 1 else ["-m"]
    return [sys.executable, *launch, "heliostat", "train", str(recipe), "--run", str(run_dir), *words]


def environment(recipe):
    return {**small.environment(), "PYTHONPATH": os.pathsep.join([str(recipe.parent), *filter(None, sys.path)])}


def run(recipe, *args, **options):
    command = torchrun(recipe, *args, **options)
    return subprocess.run(command, env=environment(recipe), text=True, capture_output=True, timeout=240)


def weights(run_dir):
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(run_dir / "model/model.safetensors").items())])


def same_curves(one, two):
    """Every number of every step, to float tolerance."""
    ours, theirs = small.metrics(one), small.metrics(two)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in mine.items():
            assert other[key] == pytest.approx(value, rel=2e-3, abs=2e-4), (mine["step"], key)


def write_recipe(folder):
    """The small run with a reward that a fresh model earns a part of: the share of digits in what it says."""
    (folder / "digits.py").write_text(
        "def score(completions, **columns):\n"
        "    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]\n"
    )
    recipe = small.write_recipe(folder)
    shaped = 'verifiers = [{name = "digits:score"}]\nshaped = true'
    recipe.write_text(recipe.read_text().replace('verifiers = [{name = "numeric"}]', shaped))
    return recipe


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    recipe = write_recipe(folder)
    done = run(recipe, folder / "run", num_ranks=1)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "run", recipe


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_ranks_train_what_one_trains(alone, tmp_path, kind):
    whole, recipe = alone
    done = run(recipe, tmp_path / "run", **{"--distributed.placement": kind})
    assert done.returncode == 0, done.stderr + done.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4
    assert done.stdout.count("run folder:") == 1
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text()) == json.loads(
        (whole / "model" / "config.json").read_text()
    )


@pytest.mark.slow
def test_two_ranks_that_sample_ahead_train_what_one_trains(tmp_path):
    recipe = write_recipe(tmp_path)
    ahead = {"--rollout.max_staleness": 2}
    for num_ranks in (1, 2):
        done = run(recipe, tmp_path / str(num_ranks), num_ranks=num_ranks, **ahead)
        assert done.returncode == 0, done.stderr + done.stdout
    same_curves(tmp_path / "1", tmp_path / "2")
    assert [row["policy/staleness_steps"] for row in small.metrics(tmp_path / "2") if row["step"] > 0] == [0, 1, 2, 2]
    assert float((weights(tmp_path / "1") - weights(tmp_path / "2")).abs().max()) < 1e-4


def ranks_of(launcher):
    """Process ids of the ranks that a torchrun started, in rank order."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (process / "environ").read_text().split("\0")
        except (OSError, ValueError):
            continue
        rank = next((v.removeprefix("RANK=") for v in variables if v.startswith("RANK=")), None)
        if parent == launcher and rank is not None:
            found[int(rank)] = int(process.name)
    return found


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_clearly_and_one_rank_continues_it(alone, tmp_path):
    whole, recipe = alone
    command = torchrun(recipe, tmp_path / "run", **{"--distributed.placement": "sharded"})
    launcher = subprocess.Popen(
        command, env=environment(recipe), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000002" / "state.json"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert launcher.poll() is None, launcher.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(ranks_of(launcher.pid)[1], signal.SIGKILL)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "another process of this run has ended" in output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    done = run(recipe, tmp_path / "run", num_ranks=1, **{"--distributed.placement": "sharded"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "from step 2" in done.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4


@pytest.mark.slow
def test_two_ranks_continue_what_one_began(alone, tmp_path):
    whole, recipe = alone
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000004")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "summary.json").unlink()
    done = run(recipe, tmp_path / "run", **{"--distributed.placement": "sharded"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "from step 2" in done.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4
