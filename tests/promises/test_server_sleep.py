"""The promise: a server that sleeps during updates changes no result, and a run killed meanwhile is continued."""

import os
import signal
import subprocess
import sys

import pytest

from heliostat.config import load_recipe
from heliostat.train import run_recipe
from tests.promises.test_ranks import environment
from tests.support import small
from tests.support.fake_server import served_from, serving_tiny

SHORT = {"train.num_steps": 3, "train.checkpoint_every": 1, "warm_start.num_steps": 2, "guard.panel_every": 0}


@pytest.mark.slow
def test_killed_while_the_server_sleeps_it_is_the_run_of_a_server_that_never_slept(tmp_path):
    path = small.write_recipe(tmp_path)
    path.write_text(small.shaped(path.read_text()))
    model = load_recipe(str(path), {}).model
    with serving_tiny(model.settings) as (_, url):
        awake = run_recipe(load_recipe(str(path), {**served_from(url, tmp_path), **SHORT}), tmp_path / "awake")
    assert awake.status == "finished", awake.reason

    with serving_tiny(model.settings) as (state, url):
        settings = {**served_from(url, tmp_path), **SHORT, "rollout.sleep_level": 2}
        options = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "heliostat", "train", str(path), "--run", str(tmp_path / "run"), *options]
        killed = subprocess.Popen(command, env=environment(path), stdout=subprocess.DEVNULL)

        def falls_asleep_and_kills(handler, answer):
            done = answer()
            os.kill(killed.pid, signal.SIGKILL)
            return done

        state.faults["/sleep"] = [*[lambda handler, answer: answer()] * 2, falls_asleep_and_kills]
        assert killed.wait(timeout=120) == -signal.SIGKILL
        assert state.asleep == {"weights", "kv_cache"}
        run = run_recipe(load_recipe(str(path), settings), tmp_path / "run")
        assert run.status == "finished", run.reason
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "awake" / weights).read_bytes()
