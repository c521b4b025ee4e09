"""What the guard promises, with real faults in real runs: it says, it goes back, it stops, it never costs a run."""

import json

import pytest
import torch

from heliostat.config import ConfigError
from heliostat.monitors import default_rules
from heliostat.monitors.guard import Guard
from heliostat.train import run_recipe
from heliostat.train.guard.run_guard import RunGuard
from heliostat.train.update.updater import Updater
from tests.support import small

QUICK = {"warm_start__num_steps": 40, "guard__baseline_start": 1, "guard__baseline_steps": 3, "eval__every": 0,
         "eval__final_samples": 1, "train__checkpoint_every": 2,
         "train__keep_checkpoints": 4, "guard__panel_every": 0}  # fmt: skip


def train(folder, name="run", **settings):
    return run_recipe(small.recipe(folder, **{**QUICK, **settings}), folder / name, "small")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(folder):
    """Metrics that do not say what the guard itself does."""
    return [{k: v for k, v in line.items() if not k.startswith("guard/")} for line in small.metrics(folder)]


def at(monkeypatch, ticks, fault):
    """Break something before the update phases of given steps, counted with those that were taken back."""
    seen = {"tick": 0}
    run = Updater.run

    def broken(self, *args, **kwargs):
        seen["tick"] += 1
        if seen["tick"] in ticks:
            fault(self)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Updater, "run", broken)


def poison(updater):
    with torch.no_grad():
        next(iter(updater.safe_step.parameters)).fill_(float("nan"))


@pytest.fixture(autouse=True)
def only_our_alarms(monkeypatch):
    """A level of three steps makes rules jumpy; only notes and broken numbers are left of them here."""

    def calm(start, size):
        return tuple(rule for rule in default_rules(start, size) if rule.level in ("note", "broken"))

    monkeypatch.setattr("heliostat.train.guard.run_guard.default_rules", calm)


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("off")
    return train(folder, guard__mode="off").folder


def test_watching_changes_nothing(unguarded, tmp_path):
    shadow = train(tmp_path, guard__panel_every=4, guard__panel_problems=8, guard__panel_samples=2)
    ours, theirs = numbers(shadow.folder), numbers(unguarded)
    looked = [line for line in ours if "panel/pass@1" in line]
    assert [line["step"] for line in looked] == [4, 8]
    assert {"panel/calibration", "panel/information", "panel/pass@k", "panel/greedy"} <= looked[0].keys()
    assert [{k: v for k, v in line.items() if not k.startswith("panel/")} for line in ours] == theirs
    assert "guard/alarms" in small.metrics(shadow.folder)[-1]
    model = "model/model.safetensors"
    assert (shadow.folder / model).read_bytes() == (unguarded / model).read_bytes()


@pytest.mark.parametrize("mode", ["shadow", "act"])
def test_broken_weights_are_taken_back_in_every_mode(tmp_path, monkeypatch, mode):
    at(monkeypatch, {5}, poison)
    result = train(tmp_path, guard__mode=mode)
    assert result.status == "finished", result.reason
    events = [row for row in rows(result.folder / "events.jsonl") if row["level"] == "broken"]
    ordered, done = events[-2:]
    assert (ordered["action"], ordered["rule"], ordered["taken"]) == ("rollback", "not-finite", True)
    assert (done["action"], done["step"], done["to"], done["lr_scale"]) == ("went back", 5, 0, 0.5)
    lines = [line for line in small.metrics(result.folder) if line["step"] > 0]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["guard/rollbacks"] == 1
    assert all(line["policy/entropy"] is not None for line in lines)


def test_off_means_off(tmp_path, monkeypatch):
    at(monkeypatch, {5}, poison)
    result = train(tmp_path, guard__mode="off")
    assert result.status == "failed"
    assert not (result.folder / "events.jsonl").exists()


def test_what_cannot_be_repaired_is_stopped_after_three_tries(tmp_path, monkeypatch):
    at(monkeypatch, set(range(5, 100)), poison)
    result = train(tmp_path)
    assert result.status == "failed"
    assert "finite" in result.reason
    went = [row for row in rows(result.folder / "events.jsonl") if row["action"] == "went back"]
    assert [row["lr_scale"] for row in went] == [0.5, 0.25, 0.125]


def surprise(step, signals):
    """A judgement that orders a rollback at the first sixth step it reads."""
    from heliostat.monitors.guard import Finding

    return Finding("test", "rollback", step, step - 1, "reward/mean", signals["reward/mean"], "value", 1.0, 0.5, 0.4,
                   "a fault was injected", "remove it")  # fmt: skip


@pytest.fixture
def alarming(monkeypatch):
    """Alarms at step 6 of the first pass only: the data of the second are others, and so is its reward."""
    read = Guard.read

    def alarmed(self, step, signals):
        found = read(self, step, signals)
        return [*found, surprise(step, signals)] if step == 6 and signals["guard/test"] == 0 else found

    act = RunGuard.observe
    monkeypatch.setattr(
        RunGuard, "observe", lambda self, step, signals: act(self, step, {**signals, "guard/test": self.skipped})
    )
    monkeypatch.setattr(Guard, "read", alarmed)


def test_shadow_mode_only_says_what_it_would_do(unguarded, tmp_path, alarming):
    result = train(tmp_path)
    assert numbers(result.folder) == numbers(unguarded)
    (event,) = [row for row in rows(result.folder / "events.jsonl") if row["rule"] == "test"]
    assert (event["action"], event["taken"], event["statistic"], event["threshold"]) == ("rollback", False, 1.0, 0.5)
    assert "in mode act" in event["text"]


def test_acting_goes_back_skips_the_data_and_halves_the_step(unguarded, tmp_path, alarming):
    result = train(tmp_path, guard__mode="act", optimizer__schedule="constant")
    assert result.status == "finished"
    before = {line["step"]: line for line in small.metrics(unguarded)}
    lines = {line["step"]: line for line in small.metrics(result.folder)}
    assert sorted(lines) == sorted(before)
    (went,) = [row for row in rows(result.folder / "events.jsonl") if row["action"] == "went back"]
    to = went["to"]
    assert (went["step"], to) == (6, 0)  # the newest checkpoint five steps before the onset
    assert [row["step"] for row in rows(result.folder / "abandoned.jsonl")] == list(range(to + 1, 7))
    assert lines[to + 1]["policy/entropy"] != rows(result.folder / "abandoned.jsonl")[0]["policy/entropy"]
    assert lines[to + 1]["optim/lr"] == pytest.approx(0.5e-3)


def test_a_run_that_the_guard_ends_is_evaluated_with_the_weights_that_it_ended_at(tmp_path, alarming):
    result = train(tmp_path, guard__mode="act", guard__max_rollbacks=0)
    assert result.status == "failed"
    assert "the guard stopped the run" in result.reason
    after = [row for row in rows(result.folder / "evals.jsonl") if row["phase"] == "after"]
    assert {row["step"] for row in after} == {6}
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["after"] == result.after.summary()
    assert summary["model"] is None
    assert not (result.folder / "model").exists()


def test_broken_weights_that_the_guard_ends_a_run_at_are_said_to_have_no_evaluation(tmp_path, alarming, monkeypatch):
    def stop(self, step, kept):
        poison(broken[0])
        return target(self, step, kept)

    broken, target = [], RunGuard.rollback_target
    at(monkeypatch, {1}, broken.append)
    monkeypatch.setattr(RunGuard, "rollback_target", stop)
    result = train(tmp_path, guard__mode="act", guard__max_rollbacks=0)
    assert result.status == "failed"
    assert "the weights of step 6 cannot be evaluated" in result.reason
    assert result.after is None


@pytest.mark.parametrize(
    ("weights", "killed_at", "staleness"),
    [
        (small.Weights("float32"), 5, 0),
        (small.Weights("float32"), 7, 0),
        (small.Weights("float32"), 5, 2),
        (small.Weights("float32"), 7, 2),
        (small.Weights("bfloat16"), 7, 2),
        (small.Weights("bfloat16", lora_rank=4), 7, 0),
    ],
    ids=str,
    indirect=["weights"],
)
def test_a_run_that_went_back_still_continues_bit_for_bit(weights, tmp_path, alarming, dying, killed_at, staleness):
    settings = {"guard__mode": "act", "rollout__max_staleness": staleness}
    whole = train(tmp_path, "whole", **settings)
    dying["left"] = killed_at
    with pytest.raises(MemoryError):
        train(tmp_path, "again", **settings)
    again = train(tmp_path, "again", **settings)
    for name in ("events.jsonl", "evals.jsonl"):
        assert (again.folder / name).read_text() == (whole.folder / name).read_text()
    assert small.metrics(again.folder) == small.metrics(whole.folder)
    model = "model/model.safetensors"
    assert (again.folder / model).read_bytes() == (whole.folder / model).read_bytes()


def test_a_crash_of_the_guard_never_costs_a_run(unguarded, tmp_path, monkeypatch):
    read = Guard.read

    def crashes(self, step, signals):
        if step == 4:
            raise ZeroDivisionError("a bug")
        return read(self, step, signals)

    monkeypatch.setattr(Guard, "read", crashes)
    result = train(tmp_path, guard__mode="act")
    assert result.status == "finished"
    assert numbers(result.folder) == numbers(unguarded)
    event = rows(result.folder / "events.jsonl")[-1]
    assert (event["action"], event["step"], event["error"]) == ("switched off", 4, "ZeroDivisionError: a bug")
    assert "guard/alarms" not in small.metrics(result.folder)[-1]


@pytest.mark.parametrize(
    ("actuator", "key"), [("entropy-bonus", "policy/entropy"), ("covariance", "loss/covariance_clipped"), ("tau", None)]
)
def test_an_actuator_is_engaged_below_its_target(tmp_path, actuator, key):
    """A target above the run's own level: the controller pushes as far as its slew limit lets it."""
    result = train(tmp_path, guard__mode="act", guard__actuator=actuator, guard__entropy_target=5.0)
    lines = [line for line in small.metrics(result.folder) if "guard/output" in line]
    assert [round(line["guard/output"], 6) for line in lines[:3]] == [0.1, 0.2, 0.3]
    assert lines[-1]["guard/setting"] > lines[0]["guard/setting"]
    assert key is None or any(key in line for line in lines[1:])
    (engaged,) = [row for row in rows(result.folder / "events.jsonl") if row["action"] == "adjust"]
    assert "engaged" in engaged["text"]


def test_an_actuator_without_its_setting_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"turns objective\.clip_high, which objective 'pmd-mean' lacks"):
        train(tmp_path, guard__actuator="clip-high")
