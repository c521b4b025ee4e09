"""What training on episodes promises, with real environment processes: kept whole, scored honestly, resumed exactly."""

import dataclasses
import itertools
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from heliostat.config import build_recipe
from heliostat.models import decode
from heliostat.research import open_experiment
from heliostat.rollout import SampleRequest, SamplingSettings
from heliostat.tasks.environments.contract import EnvironmentFailed
from heliostat.train import run_recipe
from heliostat.train.episodes import UnlikeWorlds
from heliostat.types import StopReason
from tests.promises import test_ranks
from tests.promises.test_survival import lines, wait_for
from tests.support import small

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
SHAPE_TEXT = ", ".join(f"{key} = {value}" for key, value in SHAPE.items())

RECIPE = """
[run]
num_threads = 1

[model]
path = "tiny"
settings = {{{shape}}}

[environment]
name = "tests.support.environments:Worlds"
max_turns = 4
max_tokens_per_turn = 8
max_tokens = 80
num_workers = 2

[task]
name = "environment"
num_train = 64
num_heldout = 12
slips = 0.5

[warm_start]
num_steps = 30
batch_size = 16
lr = 5e-3

[rollout]
prompts_per_step = 6
group_size = 4
{rollout}

[optimizer]
lr = 1e-3

[train]
num_steps = 6
updates_per_step = 2
checkpoint_every = 2

[eval]
every = 3
num_problems = 8
final_samples = 2
"""


def write_recipe(folder, rollout="", more=""):
    path = folder / "agent.toml"
    path.write_text(small.weights.into(RECIPE.format(rollout=rollout, shape=SHAPE_TEXT)) + more)
    return path


def overrides(tmp_path, **environment):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"go {i}", "number": i}) + "\n" for i in range(40)))
    return {
        "model.settings": SHAPE,
        "run.num_threads": 1,
        "task.name": "file",
        "task.path": str(data),
        "task.answer_column": "",
        "task.num_train": 30,
        "task.num_heldout": 8,
        "rollout.group_size": 4,
        "environment.name": "tests.support.environments:Worlds",
        "environment.max_turns": 4,
        "environment.max_tokens_per_turn": 6,
        "environment.max_tokens": 80,
        "environment.num_workers": 2,
        "environment.timeout_s": 20.0,
        **{f"environment.{key}": value for key, value in environment.items()},
    }


def ending_turns(experiment, bias=4.7):
    """Make the untrained model end its turns about as often as not."""
    loaded = experiment.loaded
    size = loaded.model.config.vocab_size
    push = torch.zeros(size).index_fill(0, torch.tensor(loaded.eos_id), bias)
    loaded.head.projection.register_forward_hook(lambda module, args, output: output + push)


def episodes(tmp_path, num=6, **environment):
    with open_experiment(build_recipe({}, overrides(tmp_path, **environment))) as experiment:
        ending_turns(experiment)
        return experiment.loaded, experiment.sample(experiment.problems(0, num), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["", "max_staleness = 1"], ids=["on policy", "stale"])
def test_killed_during_an_episode_it_continues_bit_for_bit(tmp_path, rollout):
    recipe = write_recipe(tmp_path, rollout)
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    done = small.run("train", recipe, "--run", whole)
    assert done.returncode == 0, done.stderr + done.stdout
    randomness = random.Random(0)
    for reached in (12, 32, 34):  # in the warm start, early and late in training
        process = small.start("train", recipe, "--run", run_dir)
        wait_for(lambda reached=reached: lines(run_dir) >= reached, process)
        time.sleep(randomness.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = small.run("train", recipe, "--run", run_dir)
    assert done.returncode == 0, done.stderr + done.stdout
    model = "model/model.safetensors"
    assert (run_dir / model).read_bytes() == (whole / model).read_bytes()
    assert small.metrics(run_dir) == small.metrics(whole)
    assert (run_dir / "evals.jsonl").read_text() == (whole / "evals.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    ["", "\n[lora]\nrank = 4\nalpha = 32\n", '\n[objective]\nname = "grpo"\n', '\n[objective]\nname = "gspo"\n'],
    ids=["whole", "lora", "grpo", "gspo"],
)
def test_a_run_on_episodes_ends_well(tmp_path, more, capsys):
    panel = {"guard.panel_every": 3, "guard.panel_problems": 8, "guard.panel_samples": 2}
    result = run_recipe(small.load_recipe(str(write_recipe(tmp_path, more=more)), panel), tmp_path / "run")
    assert result.status == "finished", result.reason
    steps = [row for row in small.metrics(tmp_path / "run") if row["step"] > 0]
    measured = [{key for key in row if key.startswith("panel/")} for row in steps if row["step"] % 3 == 0]
    rates = {f"panel/{name}" for name in ("pass@1", "pass@k", "reward", "greedy", "gap")}
    assert measured == [rates | {"panel/information"}] * 2  # of whole episodes; a bare answer is none
    assert "plays whole episodes and leaves calibration out" in capsys.readouterr().out
    gaps = [row["policy/sampler_gap"] for row in steps if "policy/sampler_gap" in row]
    assert gaps, "some step has a signal"
    assert max(gaps) < 1e-3


@pytest.mark.slow
def test_ids_only_append_and_sampled_ids_are_kept(tmp_path):
    """The prompt with its first observation, then every turn as sampled, and every answer as its text encodes."""
    loaded, groups = episodes(tmp_path)
    for group in groups:
        assert "world" in decode(loaded, group.prompt.token_ids)
        for one in group.completions:
            for turn, after in itertools.pairwise(one.turns):
                reply = one.token_ids[turn.end : after.start]
                action = decode(loaded, one.token_ids[turn.start : turn.end])
                assert decode(loaded, reply) == f"heard {len(action)}"
                encoded = loaded.tokenizer.encode(f"heard {len(action)}", add_special_tokens=False)
                assert list(reply[: len(encoded)]) == encoded
            assert len(one.logp_gen) == sum(turn.num_tokens for turn in one.turns)


@pytest.mark.slow
def test_a_turn_cut_by_length_ends_the_episode_with_its_reason(tmp_path):
    _, groups = episodes(tmp_path)
    completions = [one for group in groups for one in group.completions]
    cut = [one for one in completions if one.stop_reason is StopReason.TURN_TRUNCATED]
    done = [one for one in completions if one.stop_reason is StopReason.ENVIRONMENT_DONE]
    assert cut
    assert done
    assert all(one.turns[-1].reward is None and one.turns[-1].num_tokens == 6 for one in cut)
    assert all(len(one.turns) == 3 and one.turns[-1].reward is not None for one in done)


@pytest.mark.slow
def test_a_trajectory_has_one_return_and_one_vote_whatever_its_turns(tmp_path):
    with open_experiment(build_recipe({}, overrides(tmp_path))) as experiment:
        ending_turns(experiment)
        groups = experiment.sample(experiment.problems(0, 6), seed=1)
        step = experiment.step(groups, seed=0)
    for group, trained in zip(groups, step.batch.groups, strict=False):
        rewards = torch.tensor(group.rewards)
        assert rewards.tolist() == [sum(turn.reward or 0.0 for turn in one.turns) for one in group.completions]
        if trained.group is group:
            torch.testing.assert_close(trained.advantages, rewards - rewards.mean())
    assert len({len(one.turns) for group in groups for one in group.completions}) > 1


@pytest.mark.slow
def test_an_episode_whose_environment_fails_is_in_no_mean_and_is_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"RuntimeError: broken"):
        _, groups = episodes(tmp_path, num=12, fails="odd")
    numbers = [group.prompt.problem.columns["number"] for group in groups]
    assert all(len(group.completions) == len(group.verdicts) for group in groups)
    for number, group in zip(numbers, groups, strict=True):
        for one in group.completions:
            assert one.stop_reason is not StopReason.ENVIRONMENT_FAILED
            assert number % 2 == 0 or one.stop_reason is StopReason.TURN_TRUNCATED, "only cut turns asked nothing"
    assert any(number % 2 for number in numbers), "groups keep the members whose environments were not asked"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:environment")
def test_where_no_environment_works_sampling_ends_with_the_reason(tmp_path):
    with open_experiment(build_recipe({}, overrides(tmp_path, fails="always"))) as experiment:
        ending_turns(experiment, bias=50.0)
        problems = experiment.problems(0, 6)
        with pytest.raises(EnvironmentFailed, match=r"none of 24 episodes could be scored: .*broken"):
            experiment.sample(problems, seed=1)


@pytest.mark.slow
def test_a_run_goes_on_without_the_episodes_that_failed(tmp_path):
    settings = overrides(tmp_path, fails="odd") | {
        "train.num_steps": 2,
        "rollout.prompts_per_step": 8,
        "eval.num_problems": 6,
        "eval.final_samples": 1,
        "audit.enabled": False,
    }
    result = run_recipe(build_recipe({}, settings), tmp_path / "run")
    assert result.status == "finished", result.reason


@pytest.mark.slow
def test_members_of_a_group_must_see_the_same_world(tmp_path):
    with pytest.raises(UnlikeWorlds, match="members of one group see different first observations"):
        episodes(tmp_path, differs=True)
    _, groups = episodes(tmp_path)
    assert len({group.prompt.token_ids for group in groups}) == len(groups), "and different problems different ones"


@pytest.mark.slow
def test_stored_turns_are_replayed_or_refused(tmp_path):
    """Replayed turns are given, never scored, and the environment goes on from there."""
    with open_experiment(build_recipe({}, overrides(tmp_path))) as experiment:
        ending_turns(experiment)
        groups = experiment.sample(experiment.problems(0, 6), seed=1)
        group, one = next((group, one) for group in groups for one in group.completions if len(one.turns) == 3)
        start = one.turns[2].start
        given = dataclasses.replace(group.prompt, prefix_ids=one.token_ids[:start], prefix_turns=tuple(one.turns[:2]))
        wrong = dataclasses.replace(given, prefix_ids=(*given.prefix_ids[:-2], 7, *given.prefix_ids[-1:]))
        engine = experiment.bundle.engine
        request = SampleRequest([given], 4, SamplingSettings(), seed=5, policy_step=0)
        (continued,) = engine.sample(request)
        assert continued.prompt.context_ids == (*group.prompt.token_ids, *one.token_ids[:start])
        for each in continued.completions:
            assert len(each.turns) == 1, "the third turn is the last"
            assert len(each.logp_gen) == each.turns[0].num_tokens
        engine.take_counts()
        with pytest.warns(UserWarning, match="answered otherwise than when it was stored"):
            refused, kept = engine.sample(dataclasses.replace(request, prompts=[wrong, given]))
        assert refused.is_empty
        assert len(kept.completions) == 4
        assert engine.take_counts().refused_replays == 1


SCRIPT = '''
import heliostat

class Higher:
    """Find a number. In the form of TRL's environment_factory."""

    def reset(self, **row):
        self.target, self.reward = int(row["target"]), 0.0
        return "go"

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: your guess.
        """
        self.reward = float(number == self.target)
        return "right" if self.reward else "higher" if number < self.target else "lower"

    def get_reward(self) -> float:
        return self.reward

def double(number: int) -> int:
    """Double a number.

    Args:
        number: the number.
    """
    return 2 * number

def is_right(prompts, completions, answer, **columns):
    return [float(str(right) in str(said)) for right, said in zip(answer, completions)]

few = {"train.num_steps": 1, "rollout.prompts_per_step": 2, "rollout.group_size": 2, "eval.num_problems": 2,
       "eval.final_samples": 1, "run.num_threads": 1, "environment.num_workers": 1, "audit.enabled": False}
rows = [{"prompt": f"find {number}", "target": number} for number in range(20)]
print(heliostat.post_train(model="tiny", data=rows, environment=Higher, overrides=few, run_dir="one").status)
rows = [{"prompt": f"double {number}", "answer": 2 * number} for number in range(20)]
settings = dict(overrides=few, run_dir="two")
print(heliostat.post_train(model="tiny", data=rows, tools=[double], rewards=[is_right], **settings).status)
'''


@pytest.mark.slow
def test_classes_and_tools_of_a_script_work_unchanged(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "finished"
    assert sum(line == "finished" for line in done.stdout.splitlines()) == 2


@pytest.mark.slow
def test_two_ranks_train_on_episodes_what_one_trains(tmp_path):
    recipe = write_recipe(tmp_path)
    plain = {"--optimizer.name": "sgd", "--optimizer.momentum": 0.9, "--optimizer.lr": 0.2, "--eval.every": 0}
    short = plain | {"--train.num_steps": 2, "--warm_start.num_steps": 4}
    for num_ranks in (1, 2):
        done = test_ranks.run(recipe, tmp_path / str(num_ranks), num_ranks=num_ranks, **short)
        assert done.returncode == 0, done.stderr + done.stdout
    one, two = (test_ranks.weights(tmp_path / name) for name in "12")
    assert float((one - two).abs().max()) < 1e-4
