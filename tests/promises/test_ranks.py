"""Several processes train what one trains: started by torchrun, over gloo, from the command line's own entry."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heliostat.config import ModelSection, load_recipe
from heliostat.models import load_model
from heliostat.train.run_folder.folder import RunFolder
from tests.support import small
from tests.support.fake_judge import judging
from tests.support.fake_server import serving
from tests.support.fake_teacher import FakeTeacher

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
    "--task.timeout_s": 60,  # a busy machine may stand still for longer than 5 s
}


def torchrun(recipe, run_dir, num_ranks=2, **options):
    words = [str(word) for pair in {**SHORT, **options}.items() for word in pair]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m", "--"]
    launch = launch if num_ranks > 1 else ["-m"]
    return [sys.executable, *launch, "heliostat", "train", str(recipe), "--run", str(run_dir), *words]


def environment(recipe):
    return {**small.environment(), "PYTHONPATH": os.pathsep.join([str(recipe.parent), *filter(None, sys.path)])}


def run(recipe, *args, preexec_fn=None, **options):
    command = torchrun(recipe, *args, **options)
    return subprocess.run(
        command, env=environment(recipe), text=True, capture_output=True, timeout=240, preexec_fn=preexec_fn
    )


def said(done):
    """What the ranks say went wrong, sentence by sentence; torchrun's own report stands around them."""
    return {line for line in done.stderr.splitlines() if line.startswith("heliostat: ")}


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
    done = run(recipe, tmp_path / "run", **{"--watch": f"--distributed.placement={kind}"})
    assert done.returncode == 0, done.stderr + done.stdout
    same_curves(whole, tmp_path / "run")
    assert done.stdout.count("watch: http://127.0.0.1:") == 1, done.stdout  # only rank 0 serves
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


def begun(whole, folder):
    """A copy of a finished run as it was after its second step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()


@pytest.mark.slow
def test_a_full_disk_under_a_sharded_checkpoint_spares_the_last_one(alone, tmp_path):
    """The kernel refuses to let any file grow beyond a few KiB, as a full disk would, when both ranks write shards."""
    whole, recipe = alone
    begun(whole, tmp_path / "run")

    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    # without the trial export, which would meet the full disk before any checkpoint does
    sharded = {"--distributed.placement": "sharded", "--train.try_export": "false"}
    done = run(recipe, tmp_path / "run", preexec_fn=full_disk, **sharded)
    assert done.returncode != 0
    assert said(done), done.stderr
    for sentence in said(done):  # the main rank's goes on about the report, for which there is no room either
        assert "could not write checkpoint" in sentence
        assert "the checkpoint of step 2 is intact" in sentence
    assert "/heliostat/train/" not in done.stderr, "the only traceback is torchrun's own"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_0*")] == ["step_000002"]
    again = run(recipe, tmp_path / "run", **sharded)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "from step 2" in again.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4


@pytest.mark.slow
def test_a_second_job_of_several_ranks_on_the_folder_is_refused(alone, tmp_path):
    _, recipe = alone
    taken = RunFolder.open(tmp_path / "run", load_recipe(str(recipe), {}))
    done = run(recipe, tmp_path / "run")
    taken.close()
    assert done.returncode != 0
    (sentence,) = said(done)
    assert f"in use by process {os.getpid()}" in sentence


@pytest.mark.slow
def test_bfloat16_follows_float32(alone, tmp_path):
    """Weights gathered and used in bfloat16, stored and stepped in float32: the same losses to its three digits."""
    whole, recipe = alone
    short = {"--train.num_steps": 2, "--distributed.placement": "sharded", "--distributed.compute_dtype": "bfloat16"}
    done = run(recipe, tmp_path / "run", **short)
    assert done.returncode == 0, done.stderr + done.stdout
    ours, theirs = small.metrics(tmp_path / "run"), small.metrics(whole)
    supervised, expected = ([row["loss/sft"] for row in rows if "loss/sft" in row] for rows in (ours, theirs))
    assert len(supervised) == 6
    assert supervised == pytest.approx(expected, rel=5e-3)
    assert supervised != expected
    trained = [row for row in ours if row["step"] > 0]
    assert len(trained) == 2
    for mine, other in zip(trained, (row for row in theirs if row["step"] > 0), strict=False):
        assert mine["policy/entropy"] == pytest.approx(other["policy/entropy"], rel=0.02)
        assert 0 < mine["policy/sampler_gap"] < 0.2
    stored = load_file(tmp_path / "run/model/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.slow
def test_two_ranks_train_the_adapters_that_one_trains(alone, tmp_path):
    _, recipe = alone
    short = {"--lora.rank": 4, "--train.num_steps": 2, "--eval.every": 0, "--guard.panel_every": 0}
    for name, num_ranks in (("one", 1), ("two", 2)):
        done = run(recipe, tmp_path / name, num_ranks, **short, **{"--distributed.placement": "sharded"})
        assert done.returncode == 0, done.stderr + done.stdout
    same_curves(tmp_path / "one", tmp_path / "two")
    assert float((weights(tmp_path / "two") - weights(tmp_path / "one")).abs().max()) < 1e-4
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    assert adapters[0].keys() == adapters[1].keys()
    for key, tensor in adapters[0].items():
        assert torch.allclose(tensor, adapters[1][key], atol=1e-4), key


@pytest.mark.slow
def test_two_ranks_continue_what_one_began(alone, tmp_path):
    whole, recipe = alone
    begun(whole, tmp_path / "run")
    done = run(recipe, tmp_path / "run", **{"--distributed.placement": "sharded"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "from step 2" in done.stdout
    same_curves(whole, tmp_path / "run")
    assert float((weights(tmp_path / "run") - weights(whole)).abs().max()) < 1e-4


@pytest.mark.slow
def test_two_ranks_ask_a_judge_what_one_asks_and_no_question_twice(tmp_path):
    recipe = small.write_recipe(tmp_path)
    few = {"--train.num_steps": 3, "--warm_start.num_steps": 0, "--eval.every": 0, "--guard.panel_every": 0}
    few |= {"--eval.final_samples": 1, "--eval.num_problems": 4, "--train.try_export": "false"}
    own = {"--judge.model": "m", "--judge.rubric": "Short is good.", "--judge.prompt_price": 1.0, "--judge.high": 100}
    asked, rows = [], []
    for num_ranks in (1, 2):
        with judging(lambda text: f"SCORE: {min(100, len(text))}") as fake:
            folder = tmp_path / f"{num_ranks}"
            done = run(recipe, folder, num_ranks=num_ranks, **few, **own, **{"--judge.url": fake.url})
            assert done.returncode == 0, done.stderr + done.stdout
            asked.append(sorted(json.dumps(body) for body in fake.bodies))
            rows.append([row for row in small.metrics(folder) if row["step"] > 0])
    assert len(set(asked[1])) == len(asked[1])
    assert len(asked[0]) == pytest.approx(len(asked[1]), rel=0.1)  # rounding may change a sampled token
    for one, two in zip(*rows, strict=True):
        for key in ("judge/score", "reward/mean", "judge/cost"):
            assert two[key] == pytest.approx(one[key], rel=0.05, abs=1e-6)
        assert two["judge/calls"] + two["judge/cached"] == one["judge/calls"] + one["judge/cached"]
        assert two["reward/mean"] == pytest.approx(two["judge/score"])
    assert rows[1][-1]["judge/cost"] <= 100e-6 * len(asked[1]) + 1e-9


@pytest.mark.slow
def test_two_ranks_ask_a_teacher_on_a_server_what_one_asks_and_nothing_twice(tmp_path):
    recipe = small.write_recipe(tmp_path)
    few = {"--train.num_steps": 3, "--warm_start.num_steps": 0, "--eval.every": 0, "--guard.panel_every": 0}
    few |= {"--eval.final_samples": 1, "--eval.num_problems": 4, "--train.try_export": "false"}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    teacher = load_model(ModelSection(path="tiny", settings=shape), 0)
    teacher.model.eval()
    rows = []
    for num_ranks in (1, 2):
        with serving(FakeTeacher(teacher)) as url:
            own = {"--teacher.url": url, "--teacher.model": "served", "--teacher.num_requests": 2}
            done = run(recipe, tmp_path / f"{num_ranks}", num_ranks=num_ranks, **few, **own)
        assert done.returncode == 0, done.stderr + done.stdout
        rows.append([row for row in small.metrics(tmp_path / f"{num_ranks}") if row["step"] > 0])
    for one, two in zip(*rows, strict=True):
        assert abs(one["teacher/kl"]) > 1e-5, "the teacher is another model"
        for key in ("teacher/kl", "teacher/distance"):
            assert two[key] == pytest.approx(one[key], rel=0.05, abs=1e-5)  # rounding may change a sampled token
        assert two["teacher/tokens"] == pytest.approx(one["teacher/tokens"], rel=0.1)
        assert two["teacher/tokens"] > 0
    assert float((weights(tmp_path / "1") - weights(tmp_path / "2")).abs().max()) < 1e-3
