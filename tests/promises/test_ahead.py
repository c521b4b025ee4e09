"""The promise: sampling ahead changes how old rollouts are, by a stated bound, and nothing else that a run promises."""

import threading

import pytest
import torch
from safetensors.torch import load_file

from heliostat.config import ConfigError, ModelSection
from heliostat.models import load_model, sampler_copy_of, snapshot_weights, with_weights
from heliostat.traces import Bank, policy_fingerprint
from heliostat.tracking import METRICS
from heliostat.train import run_recipe
from heliostat.train.checks.recipe import check_ranks
from heliostat.train.console.interrupt import InterruptHandler
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import score
from heliostat.train.rollouts.planner import RolloutPlanner
from heliostat.train.step_metrics import StepMetrics
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.updater import Updater
from tests.support import fake_server, small
from tests.support.fake_server import FakeServer, served_from, serving_tiny

QUICK = {"warm_start__num_steps": 40, "eval__every": 3, "train__num_steps": 7}


def trained(folder):
    return [line for line in small.metrics(folder) if line["step"] > 0]


def same_runs(one, two):
    assert small.metrics(one) == small.metrics(two)
    for name in ("evals.jsonl", "transcripts.jsonl"):
        assert (one / name).read_text() == (two / name).read_text()
    model = "model/model.safetensors"
    assert (one / model).read_bytes() == (two / model).read_bytes()


@pytest.mark.parametrize("bound", [1, 2])
def test_killed_and_continued_it_is_the_same_run(tmp_path, dying, bound):
    """With problems that depend on what was solved before, and the rollouts of both in a bank."""
    recipes = {}
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        settings = {"train__focus": 0.7, "traces__bank": str(tmp_path / name / "traces.bank"), **QUICK}
        recipes[name] = small.recipe(tmp_path / name, rollout__max_staleness=bound, **settings)
    whole = run_recipe(recipes["whole"], tmp_path / "whole" / "run").folder
    for left in (1, 4, 1):
        dying["left"] = left
        with pytest.raises(MemoryError):
            run_recipe(recipes["broken"], tmp_path / "broken" / "run")
    dying["left"] = 0
    assert run_recipe(recipes["broken"], tmp_path / "broken" / "run").status == "finished"
    same_runs(tmp_path / "broken" / "run", whole)
    assert [line["policy/staleness_steps"] for line in trained(whole)] == [min(k, bound) for k in range(7)]
    banks = []
    for name in recipes:
        with Bank.open(tmp_path / name / "traces.bank") as bank:
            banks.append(sorted((t.problem_id, t.completion_ids, t.seed, t.flops, t.reward, t.source) for t in bank))
    assert [row[:-1] for row in banks[0]] == [row[:-1] for row in banks[1]]
    assert {row[-1].step for row in banks[0]} == set(range(7 - bound))
    assert [row[-1].policy for row in banks[0]] == [row[-1].policy for row in banks[1]]


def test_the_bank_says_which_weights_sampled(tmp_path, monkeypatch):
    fingerprints = {}
    run = Updater.run

    def noted(self, *args):
        fingerprints[len(fingerprints)] = policy_fingerprint(self.policy.loaded)
        return run(self, *args)

    monkeypatch.setattr(Updater, "run", noted)
    bank = tmp_path / "traces.bank"
    recipe = small.recipe(tmp_path, rollout__max_staleness=1, traces__bank=str(bank), **QUICK)
    assert run_recipe(recipe, tmp_path / "run").status == "finished"
    with Bank.open(bank) as opened:
        told = {trace.source.step: trace.source.policy for trace in opened}
    assert told == {step: fingerprints[step] for step in range(6)}
    assert len(set(told.values())) == 6


def test_stopped_by_the_user_it_continues_as_if_nothing_had_happened(tmp_path, monkeypatch):
    recipe = small.recipe(tmp_path, rollout__max_staleness=2, **QUICK)
    whole = run_recipe(recipe, tmp_path / "whole").folder
    check, state = InterruptHandler.check, {"left": 4 + 40}

    def asked(self):
        state["left"] -= 1
        self.requested |= state["left"] == 0
        check(self)

    monkeypatch.setattr(InterruptHandler, "check", asked)
    stopped = run_recipe(recipe, tmp_path / "run")
    assert (stopped.status, stopped.exit_code) == ("interrupted", 130)
    assert "after step 3" in stopped.reason
    assert run_recipe(recipe, tmp_path / "run").status == "finished"
    same_runs(tmp_path / "run", whole)


def test_batches_without_signal_do_not_move_the_weights(tmp_path):
    """A stored anchor and the same number computed again differ in their last bit, of which Adam would make a step."""
    recipe = small.recipe(tmp_path, rollout__max_staleness=2, warm_start__num_steps=0, train__num_steps=5)
    kept = ("step_000003", "step_000005")
    result = run_recipe(recipe, tmp_path / "run")
    assert {line["reward/zero_signal"] for line in trained(result.folder)} == {1.0}
    first, last = (load_file(result.folder / "checkpoints" / name / "model.safetensors") for name in kept)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_what_it_adds_is_declared_and_absent_without_it(tmp_path):
    keys = {}
    for bound in (0, 1):
        (tmp_path / str(bound)).mkdir()
        settings = {"warm_start__num_steps": 5, "train__num_steps": 2, "rollout__max_staleness": bound}
        folder = run_recipe(small.recipe(tmp_path / str(bound), **settings), tmp_path / str(bound) / "run").folder
        keys[bound] = set().union(*(trained(folder)))
    assert keys[1] - keys[0] == {"policy/staleness_steps"}
    assert {"policy/staleness_steps", "time/ahead"} <= set(METRICS)


def test_what_cannot_be_had_together_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"guard\.actuator = 'temperature'.*rollout\.max_staleness = 0"):
        small.recipe(tmp_path, rollout__max_staleness=1, guard__actuator="temperature")
    with pytest.raises(ConfigError, match=r"rollout\.num_workers above 1.*run\.num_threads = 1"):
        small.recipe(tmp_path, rollout__max_staleness=1, rollout__num_workers=2, run__num_threads=2)
    with pytest.raises(ConfigError, match=r"run\.num_workers above 1.*run\.num_threads = 1"):
        small.recipe(tmp_path, rollout__max_staleness=1, run__num_workers=2, run__num_threads=2)
    small.recipe(tmp_path, rollout__max_staleness=1, rollout__num_workers=2, run__num_threads=1)
    assert small.recipe(tmp_path, rollout__max_staleness=1).gradient_workers == 1
    ranks = Runtime(torch.device("cpu"), rank=0, world_size=2, sharded=True)
    with pytest.raises(ConfigError, match=r"distributed\.placement = 'replicated'"):
        check_ranks(small.recipe(tmp_path, rollout__max_staleness=1), ranks)


# -- on a server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    (tmp_path / "recipe").mkdir()
    recipe = small.recipe(tmp_path / "recipe")
    with serving_tiny(recipe.model.settings) as (state, url):
        changes = {
            **served_from(url, tmp_path),
            "train__num_steps": 5,
            "train__checkpoint_every": 1,
            "eval__every": 2,
            "warm_start__num_steps": 40,
        }
        yield state, lambda **more: small.recipe(tmp_path / "recipe", **{**changes, **more})


def test_a_server_samples_while_the_trainer_trains_on_the_exact_anchor(server, tmp_path, monkeypatch):
    """No update but the last begins before the server has been asked for the next step's completions."""
    _, recipe = server
    run, seen = Updater.run, []
    asked = threading.Condition()
    prompts: list[set] = []
    completions = FakeServer.completions

    def watched(self, body):
        with asked:
            prompts[-1].add(tuple(body["prompt"]))
            asked.notify_all()
        return completions(self, body)

    def training(self, batch, *args):
        if len(seen) < 4:
            with asked:
                assert asked.wait_for(lambda: len(prompts[-1]) > 2, timeout=20), "nothing was asked for meanwhile"
        weights = snapshot_weights(self.policy.loaded)
        seen.append((batch, weights, batch.groups[0].group.policy_step))
        return run(self, batch, *args)

    order = RolloutPlanner.request

    def ordering(self, step):
        with asked:
            prompts.append(set())
        return order(self, step)

    prompts.append(set())
    monkeypatch.setattr(FakeServer, "completions", watched)
    monkeypatch.setattr(Updater, "run", training)
    monkeypatch.setattr(RolloutPlanner, "request", ordering)
    result = run_recipe(recipe(rollout__max_staleness=1), tmp_path / "run")
    assert result.status == "finished", result.reason
    assert [policy_step for *_, policy_step in seen] == [0, 0, 1, 2, 3]
    assert max(line.get("policy/sampler_gap", 0.0) for line in trained(result.folder)) < 1e-3

    twin = sampler_copy_of(load_model(ModelSection(path="tiny", settings=recipe().model.settings), 0))
    for batch, _, policy_step in seen[1:]:
        with with_weights(
            twin, seen[policy_step][1]
        ):  # the weights at the start of step p + 1 are those that step p left
            own = score(Policy(twin, 1.0, shared_prompt=True), batch.groups, 8192, UpdateCounts().add)
        for group, logp in zip(batch.groups, own, strict=True):
            assert torch.allclose(torch.cat(group.logp_old), torch.cat(logp), atol=1e-5)


def test_a_server_that_dies_meanwhile_ends_the_run_in_one_sentence_and_it_continues(server, tmp_path):
    state, recipe = server
    whole = run_recipe(recipe(rollout__max_staleness=1), tmp_path / "whole")
    assert whole.status == "finished", whole.reason
    state.loaded = load_model(ModelSection(path="tiny", settings=recipe().model.settings), 0)
    state.loaded.model.eval()
    num_before = 20 + 20 + 4 + 3 * (8 + 2)  # evaluation, greedy as well, probes, and three batches
    state.faults["/v1/completions"] = [*[lambda handler, answer: answer()] * num_before, fake_server.dies]
    failed = run_recipe(recipe(rollout__max_staleness=1), tmp_path / "run")
    assert failed.status == "failed"
    assert "/v1/completions" in failed.reason
    assert "closed connection" in failed.reason
    assert "\n" not in failed.reason
    assert run_recipe(recipe(rollout__max_staleness=1), tmp_path / "run").status == "finished"
    assert trained(tmp_path / "run") == trained(whole.folder)


def test_a_stopped_engine_breaks_off_its_requests(server, tmp_path, monkeypatch):
    """Interrupted while the server hangs, a run ends without waiting for the server's own time limit."""
    state, recipe = server
    calls = []

    def hangs_late(handler, answer):
        calls.append(1)
        return fake_server.hangs(handler, answer) if len(calls) > 20 + 20 + 4 + 8 + 3 else answer()

    state.always["/v1/completions"] = hangs_late

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(StepMetrics, "signals", interrupted)
    stopped = run_recipe(recipe(rollout__max_staleness=1, rollout__server_timeout_s=600.0), tmp_path / "run")
    assert stopped.status == "interrupted"
    assert not state.released.is_set()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")] == []
