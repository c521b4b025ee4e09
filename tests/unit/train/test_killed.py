"""Sampling into a bank and training beside one, killed at random instants: nothing is lost, doubled or half there."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch

from heliostat.config import load_recipe
from heliostat.rollout import DecodeLimits, TorchEngine
from heliostat.tasks import Task, load_task
from heliostat.traces import Bank, check_bank
from heliostat.train import run_recipe
from heliostat.train.console.progress import Display
from heliostat.train.data.collect import Collector, Quota
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Verdict
from tests.support import small
from tests.support.forks import in_child
from tests.support.nano import make_nano

QUOTA = Quota(num_successes=3, max_attempts=40)


def killed_after(seconds, work):
    """Run ``work`` in a forked process and kill it; returns whether it had ended by itself before that."""
    child = in_child(work)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class EvenLengths:
    """Judges in this process: a coin that the model throws with its words."""

    def verify(self, groups):
        flags = [[len(one.text) % 4 == 1 for one in group.completions] for group in groups]
        return [
            replace(group, verdicts=tuple(Verdict(float(flag), flag) for flag in row))
            for group, row in zip(groups, flags, strict=True)
        ]


def content(path):
    """Everything but the order of writing."""
    with Bank.open(path) as bank:
        assert check_bank(bank).num_issues == 0
        traces = sorted((t.problem_id, t.completion_ids, t.seed, t.flops, t.reward) for t in bank)
        return traces, sorted(row[1:] for row in bank.query("SELECT * FROM attempts"))


@pytest.mark.slow
def test_sampling_survives_kills_at_any_instant(tmp_path):
    """Kills come later after each that let no round through, so that the campaign ends and every instant is hit."""
    recipe = small.recipe(tmp_path, rollout__group_size=4, rollout__prompts_per_step=3)
    task: Task = load_task(recipe.task[0], 0)
    loaded = make_nano()
    bundle = ModelBundle(loaded, TorchEngine(loaded, DecodeLimits(4)), recipe, torch.float32)

    def collect(path):
        with Bank.open(path) as bank:
            Collector(recipe, bundle, [task], EvenLengths(), bank, QUOTA, Display()).collect(task.train[:24])

    whole, broken = tmp_path / "whole.bank", tmp_path / "broken.bank"
    collect(whole)
    randomness, kills, patience_s = random.Random(0), 0, 0.01
    finished = False
    while kills < 100 and not finished:
        with Bank.open(broken) as bank:
            before = len(bank.query("SELECT id FROM attempts"))
        finished = killed_after(randomness.random() * patience_s, lambda: collect(broken))
        kills += not finished
        with Bank.open(broken) as bank:
            moved = len(bank.query("SELECT id FROM attempts")) > before
        patience_s = 0.01 if moved else 1.3 * patience_s
    collect(broken)
    assert kills >= 15
    assert content(broken) == content(whole)


@pytest.mark.slow
def test_a_killed_and_continued_run_has_each_rollout_once(tmp_path):
    banks = {name: tmp_path / name / "traces.bank" for name in ("whole", "broken")}
    for bank in banks.values():
        bank.parent.mkdir()
    small.write_recipe(tmp_path)
    changes = {"warm_start.num_steps": 1, "train.num_steps": 12, "train.checkpoint_every": 2, "eval.every": 0}
    recipes = {
        name: load_recipe(str(tmp_path / "small.toml"), {**changes, "traces.bank": str(bank)})
        for name, bank in banks.items()
    }
    began = time.monotonic()
    run_recipe(recipes["whole"], tmp_path / "whole" / "run")
    whole_s = time.monotonic() - began  # a share of it hits the middle of a run on any machine
    randomness, kills = random.Random(1), 0
    while kills < 6:
        seconds = whole_s * (0.1 + 0.4 * randomness.random())
        if killed_after(seconds, lambda: run_recipe(recipes["broken"], tmp_path / "broken" / "run")):
            break
        kills += 1
    assert run_recipe(recipes["broken"], tmp_path / "broken" / "run").status == "finished"
    assert kills > 0
    assert content(banks["broken"]) == content(banks["whole"])
    assert len(content(banks["whole"])[0]) == 12 * 8 * 4
