"""What a run survives, each with the real fault: killed processes, full disks, broken numbers, impatient people."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time

import pytest
import torch

from heliostat.config import ConfigError
from heliostat.train import run_recipe
from heliostat.train.run_folder.folder import RunFolder
from heliostat.train.run_folder.lock import RunLocked
from tests.support import small


def wait_for(condition, process, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.02)


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recipe = small.write_recipe(folder)
    done = small.run("train", recipe, "--run", folder / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "run", recipe


@pytest.mark.slow
def test_killed_at_any_instant_it_continues_bit_for_bit(uninterrupted, tmp_path):
    """Also where other numbers of threads share its micro-batches from then on."""
    whole, recipe = uninterrupted
    run_dir = tmp_path / "run"
    randomness = random.Random(0)
    for num_workers, reached in enumerate((5, 63, 66)):  # in the warm start, early in training, late in training
        process = small.start("train", recipe, "--run", run_dir, "--run.num_workers", str(num_workers))
        wait_for(lambda reached=reached: lines(run_dir) >= reached, process)
        time.sleep(randomness.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = small.run("train", recipe, "--run", run_dir)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "resuming" in done.stdout
    model = "model/model.safetensors"
    assert (run_dir / model).read_bytes() == (whole / model).read_bytes()
    last = sorted((whole / "checkpoints").iterdir())[-1].name
    ours, theirs = (torch.load(d / "checkpoints" / last / "optimizer.pt", weights_only=True) for d in (run_dir, whole))
    for key, state in theirs["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(ours["state"][key][name]), torch.as_tensor(value))
    assert small.metrics(run_dir) == small.metrics(whole)
    assert (run_dir / "evals.jsonl").read_text() == (whole / "evals.jsonl").read_text()
    assert (run_dir / "transcripts.jsonl").read_text() == (whole / "transcripts.jsonl").read_text()


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_130_and_can_be_continued(uninterrupted, tmp_path):
    whole, recipe = uninterrupted
    run_dir = tmp_path / "run"
    process = small.start("train", recipe, "--run", run_dir)
    wait_for(lambda: lines(run_dir) >= 62, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    kept = max(int(p.name.removeprefix("step_")) for p in (run_dir / "checkpoints").iterdir())
    assert kept == summary["steps"] >= 1
    done = small.run("train", recipe, "--run", run_dir)
    assert done.returncode == 0, done.stderr
    assert small.metrics(run_dir) == small.metrics(whole)


def test_no_terminal_means_plain_lines(uninterrupted, tmp_path):
    whole, recipe = uninterrupted
    shutil.copytree(whole, tmp_path / "run")
    done = small.run("train", recipe, "--run", tmp_path / "run")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "held-out pass@1" in done.stdout


def test_a_second_job_on_the_folder_is_refused(tmp_path):
    recipe = small.recipe(tmp_path)
    folder = RunFolder.open(tmp_path / "run", recipe)
    done = small.run("train", tmp_path / "small.toml", "--run", tmp_path / "run")
    folder.close()
    assert done.returncode == 2
    assert f"in use by process {os.getpid()}" in done.stderr
    assert done.stderr.count("\n") == 1
    first = RunFolder.open(tmp_path / "run", recipe)
    with pytest.raises(RunLocked):
        RunFolder.open(tmp_path / "run", recipe)
    first.close()


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder.open(tmp_path / "run", small.recipe(tmp_path)).close()
    with pytest.raises(ConfigError, match=r"another recipe \(train.num_steps was 8, is now 9\)"):
        RunFolder.open(tmp_path / "run", small.recipe(tmp_path, train__num_steps=9))
    RunFolder.open(tmp_path / "run", small.recipe(tmp_path, tracking__tensorboard=True)).close()


def test_a_folder_continues_elsewhere(tmp_path):
    """On another number of cores, against another server: where a run computes is not what it computes."""
    (tmp_path / "run").mkdir()
    server = {"rollout__engine": "vllm", "rollout__sync_dir": "sync"}
    here = small.recipe(tmp_path, rollout__server_url="http://one:8000", **server)
    RunFolder.open(tmp_path / "run", here).close()
    there = {"rollout__server_url": "http://two:8001", "rollout__server_retries": 9, "run__num_threads": 2}
    workers = {"run__num_workers": 2, "task__num_workers": 3, "task__timeout_s": 60.0}
    RunFolder.open(tmp_path / "run", small.recipe(tmp_path, **server, **there, **workers)).close()
    with pytest.raises(ConfigError, match=r"task\.0\.num_train was 80, is now 70"):
        RunFolder.open(tmp_path / "run", small.recipe(tmp_path, **server, **there, task__num_train=70))


WITHOUT_TRIAL = ("--train.try_export", "false")  # which would meet the full disk before any checkpoint does


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint(uninterrupted, tmp_path):
    """The kernel refuses to write more than a few KiB to any file, as a full disk would, after the first checkpoint."""
    _, recipe = uninterrupted
    run_dir = tmp_path / "run"
    done = small.run("train", recipe, "--run", run_dir, "--train.num_steps", 0, *WITHOUT_TRIAL)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(run_dir / "model")
    for name in ("recipe.toml", "summary.json"):
        (run_dir / name).unlink()

    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = small.run("train", recipe, "--run", run_dir, *WITHOUT_TRIAL, preexec_fn=full_disk)
    assert done.returncode == 1, done.stderr + done.stdout
    assert "could not write checkpoint" in done.stderr
    assert "checkpoint of step 0 is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"step_-00003", "step_000000"}
    again = small.run("train", recipe, "--run", run_dir, *WITHOUT_TRIAL)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("mode", "message"), [("off", "not finite|non-finite"), ("shadow", "not finite|non-finite|guard stopped the run")]
)
def test_broken_numbers_end_the_run_with_the_last_good_checkpoint(tmp_path, mode, message):
    recipe = small.recipe(
        tmp_path, optimizer__lr=1e38, optimizer__schedule="constant", train__checkpoint_every=1, guard__mode=mode
    )
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "failed"
    assert re.search(message, result.reason)
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert kept
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["before"]["pass@1"] is not None


def test_a_broken_checkpoint_is_named(uninterrupted, tmp_path):
    whole, recipe = uninterrupted
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    done = small.run("train", recipe, "--run", tmp_path / "run")
    assert done.returncode == 1
    assert "cannot read checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
