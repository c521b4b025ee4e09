"""Prefixes of trajectories: turns of a stored success are replayed or refused, after a kill the same ones."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from heliostat.models import decode
from heliostat.research import open_experiment
from heliostat.rollout import SampleRequest, SamplingSettings
from heliostat.tasks.environments.contract import Environment, Step
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.traces import Bank, Trace, TraceSource, tokenizer_fingerprint
from heliostat.traces.cuts import PrefixSource
from heliostat.train.data.demonstrations import Demonstrations
from heliostat.train.data.episode_demonstrations import EpisodeDemonstrations
from heliostat.train.data.prefixes import as_replay, find_prefix_sources
from heliostat.train.data.trace_log import traces_of
from heliostat.types import Group, Turn, Verdict
from tests.promises.test_agents import RECIPE, SHAPE_TEXT
from tests.promises.test_survival import lines, wait_for
from tests.support import small

HERE = __name__
NUM_STEPS = 4


class Fickle(Environment):
    """Answers from the second process on, and shows from the third on, what it did not at first."""

    def __init__(self, log, shows_another=False):
        self.log, self.shows_another = log, shows_another

    def reset(self, problem, seed):
        with Path(self.log).open("a+") as log:
            log.write(".")
            log.seek(0)
            self.count = len(log.read())
        return "hello" if not self.shows_another or self.count == 1 else "hallo"

    def step(self, action):
        return Step("one" if self.count == 1 or self.shows_another else "two", 0.5)

    def oracle(self):
        return "go"


def recipe_text(bank):
    worlds = 'name = "tests.support.environments:Worlds"'
    assert worlds in RECIPE
    text = RECIPE.format(rollout="", shape=SHAPE_TEXT).replace(worlds, 'name = "lookup"\nnum_keys = 4\nnum_hops = 2')
    text = text.replace("num_steps = 6", f"num_steps = {NUM_STEPS}")
    return text + f'\n[traces]\nbank = "{bank}"\n\n[prefix]\nname = "band"\n'


def demonstrations(experiment, problems):
    """Return the oracle's episodes as successful traces."""
    bundle = experiment.bundle
    recipe, loaded = bundle.recipe, bundle.loaded
    tasks = {task.name: task for task in experiment.tasks}
    own = Demonstrations(loaded, recipe.model, tasks, num_steps=1, seed=0)
    played = EpisodeDemonstrations(own, bundle.engine.environments).play(problems)
    source = TraceSource(tokenizer_fingerprint(loaded), environment=recipe.environment.recorded_name)
    for one in played:
        row = one.row()
        *before, last = row.completion.turns
        turns = (*before, replace(last, reward=1.0, success=True))
        group = Group(row.prompt, (replace(row.completion, turns=turns),), (Verdict(1.0, True),))
        yield from traces_of([group], {row.prompt.problem.task: source}, flops=0.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A recipe, and a bank of right trajectories in which every third was answered in another world."""
    folder = tmp_path_factory.mktemp("trajectories")
    bank = folder / "traces.bank"
    (folder / "agent.toml").write_text(small.weights.into(recipe_text(bank)))
    recipe = small.load_recipe(str(folder / "agent.toml"), {})
    plain = small.load_recipe(str(folder / "agent.toml"), {"prefix.name": "none", "traces.bank": ""})
    with open_experiment(plain) as experiment, Bank.open(bank) as opened:
        problems = [problem for task in experiment.tasks for problem in task.train]
        traces = list(demonstrations(experiment, problems))
        for number, trace in enumerate(traces):
            if number % 3 == 0:
                traces[number] = elsewhere(trace, number)
        opened.append(traces)
        yield folder, recipe, experiment, traces


def elsewhere(trace, number):
    """Return the trace as it would be in another world: after another prompt, or with another first reply."""
    if number % 2:
        return replace(trace, prompt_ids=(*trace.prompt_ids[:-1], trace.prompt_ids[-1] + 1))
    ids, place = list(trace.completion_ids), trace.turns[0].end
    ids[place] += 1
    return replace(trace, completion_ids=tuple(ids))


@pytest.mark.slow
def test_a_killed_run_replays_the_same_trajectories_and_counts_those_refused(prepared, tmp_path):
    folder, _, experiment, written = prepared
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    done = small.run("train", folder / "agent.toml", "--run", whole)
    assert done.returncode == 0, done.stderr + done.stdout
    process = small.start("train", folder / "agent.toml", "--run", run_dir)
    wait_for(lambda: lines(run_dir) >= lines(whole) - 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = small.run("train", folder / "agent.toml", "--run", run_dir)
    assert done.returncode == 0, done.stderr + done.stdout
    model = "model/model.safetensors"
    assert (run_dir / model).read_bytes() == (whole / model).read_bytes()
    assert small.metrics(run_dir) == small.metrics(whole)
    assert (run_dir / "prefixes.json").read_bytes() == (whole / "prefixes.json").read_bytes()

    steps = [row for row in small.metrics(whole) if row["step"] > 0 and "agent/refused_replays" in row]
    assert len(steps) == NUM_STEPS
    num_refused = sum(row["agent/refused_replays"] for row in steps)
    assert 0 < num_refused < 4 * NUM_STEPS
    with Bank.open(folder / "traces.bank") as bank:
        logged = [trace for trace in bank if trace.source.run == "whole"]
    assert len(logged) == 4 * (6 * NUM_STEPS - num_refused)
    assert sum(trace.flops for trace in logged) == pytest.approx(steps[-1]["compute/rollout_flops"])
    usable = {trace.problem_id: trace for number, trace in enumerate(written) if number % 3}
    given = [trace for trace in logged if trace.prefix_ids]
    assert {len(trace.given_turns) for trace in given} == {1, 2}
    for trace in given:
        stored, num = usable[trace.problem_id], len(trace.given_turns)
        assert trace.prompt_ids == stored.prompt_ids
        assert trace.prefix_ids == stored.completion_ids[: stored.turns[num].start]
        assert trace.given_turns == stored.turns[:num]
        assert len(trace.logp_gen) == sum(turn.num_tokens for turn in trace.sampled_turns)
        assert trace.cut == f"prefix:{len(trace.prefix_ids)}"
        assert trace.source.environment == "lookup"
    assert decode(experiment.loaded, given[0].prefix_ids).startswith("get ")


@pytest.mark.slow
def test_cuts_are_the_ends_of_replies_and_never_the_whole_trajectory(prepared, tmp_path):
    _, recipe, experiment, written = prepared
    found = find_prefix_sources(recipe, experiment.bundle, experiment.tasks)
    assert len(found.prefix_sources) == len(written)
    by_id = {trace.problem_id: trace for trace in written}
    for one in found.prefix_sources:
        trace = by_id[one.problem_id]
        assert one.reply_ends == tuple(turn.start for turn in trace.turns[1:])
        assert one.ids == trace.completion_ids[: trace.turns[-1].start]
        assert one.turns == trace.turns[:-1]
    other = recipe.model_copy(update={"environment": recipe.environment.model_copy(update={"name": "maze"})})
    with pytest.raises(ValueError, match=r"0 from environment 'maze'.*a turn to give before its last"):
        find_prefix_sources(other, experiment.bundle, experiment.tasks)


@pytest.mark.slow
@pytest.mark.parametrize("shows_another", [False, True], ids=["another reply", "another prompt"])
def test_an_environment_that_differs_the_second_time_is_refused_and_counted(tmp_path, shows_another):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"go {n}", "answer": "go"}) + "\n" for n in range(12)))
    overrides = {
        **{"model.path": "tiny", "run.num_threads": 1, "task.name": "file", "task.path": str(data)},
        **{"task.num_train": 8, "task.num_heldout": 4, "environment.name": f"{HERE}:Fickle"},
        **{"environment.log": str(tmp_path / "log"), "environment.shows_another": shows_another},
        **{"environment.max_turns": 3, "environment.num_workers": 1},
    }
    with open_experiment("minimal", overrides) as experiment:
        bundle = experiment.bundle
        environments = bundle.engine.environments
        (problem,) = experiment.problems(0, 1)
        episode = environments.pool.open(row_of(problem), seed_of(problem))
        form = environments.format_of(problem, episode)
        asked = bundle.prompt(form.with_observation(problem, episode.first.result()))
        turn = (*bundle.loaded.tokenizer.encode("go", add_special_tokens=False), bundle.loaded.eos_id)
        reply = form.continuation(episode.step("go").result().observation, turn)
        episode.close()
        stored = PrefixSource("p", turn + reply, 20, asked.token_ids, (Turn(0, len(turn)),))
        prompt = as_replay(stored, problem, stored.ids)
        fresh = replace(bundle.prompt(problem), token_ids=())
        request = SampleRequest([prompt, fresh], 2, SamplingSettings(), seed=5, policy_step=0)
        expected = "begins otherwise" if shows_another else "answered otherwise"
        with pytest.warns(UserWarning, match=expected):
            refused, _ = bundle.engine.sample(request)
        assert refused.is_empty
        assert bundle.engine.take_counts().refused_replays == 1


def test_controls_that_cannot_be_replayed_are_refused(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(recipe_text(tmp_path / "traces.bank"))
    for key, value, reason in (
        ("mode", "unrelated", "answers otherwise"),
        ("mode", "hint", "first observation ends the question"),
        ("separator", "\n", "where a reply of the environment ends"),
    ):
        with pytest.raises(ValueError, match=reason):
            small.load_recipe(str(path), {f"prefix.{key}": value})


def test_a_trace_of_another_environment_or_of_none_is_not_picked(tmp_path):
    with Bank.open(tmp_path / "traces.bank") as bank:
        for number, name in enumerate(("maze", "", "lookup")):
            bank.append([Trace("p", "t", (1,), (2 + number,), 1.0, True, TraceSource("tok", environment=name))])
        picked = {name: bank.pick(["p"], 1, tokenizer="tok", environment=name) for name in ("lookup", "", "maze")}
        assert [picked[name]["p"][0].completion_ids for name in ("maze", "", "lookup")] == [(2,), (3,), (4,)]
        assert bank.pick(["p"], 1, tokenizer="tok", environment="database") == {}
