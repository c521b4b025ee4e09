"""The guard inside other people's trainers: a real transformers Trainer, and a real TRL run where TRL is installed."""

import importlib.util
import json
import math

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from heliostat.adapters.guard_callback import METRIC_OF, GuardCallback
from heliostat.monitors import Guard
from heliostat.report.diagnosis import diagnose
from heliostat.tracking import check_key


class Line(nn.Module):
    """Fits a line; from the ``broken`` forward pass on, its gradient is not a number."""

    def __init__(self, broken=10**9):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.broken, self.seen = broken, 0

    def forward(self, x, labels):
        self.seen += 1
        loss = (self.layer(x) - labels).square().mean()
        return {"loss": loss * (math.nan if self.seen >= self.broken else 1.0)}


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = torch.tensor([index / 64])
        return {"x": x, "labels": 2 * x}


def train(folder, model, callback, max_steps=12, resume=None, **settings):
    args = TrainingArguments(
        str(folder), max_steps=max_steps, logging_steps=1, report_to=[], use_cpu=True, save_steps=6,
        disable_tqdm=True, restore_callback_states_from_checkpoint=True, seed=0, **settings,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=Points(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_healthy_training_is_left_alone(tmp_path):
    trainer = train(tmp_path, Line(), GuardCallback(baseline_start=1, baseline_steps=3))
    assert trainer.state.global_step == 12
    logged = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert {"loss/objective", "optim/grad_norm", "optim/lr"} <= logged[0].keys()
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shadow", "act"])
def test_broken_numbers_stop_a_training_in_every_mode(tmp_path, mode):
    trainer = train(tmp_path, Line(broken=5), GuardCallback(mode))
    assert trainer.state.global_step == 5
    event = rows(tmp_path / "events.jsonl")[0]
    assert (event["step"], event["rule"], event["action"], event["taken"]) == (5, "not-finite", "stop", True)
    assert "not finite" in diagnose(tmp_path / "metrics.jsonl").headline


@pytest.mark.slow
def test_its_state_is_in_the_checkpoint(tmp_path):
    whole = GuardCallback(baseline_start=1, baseline_steps=8)
    train(tmp_path / "whole", Line(), whole)
    train(tmp_path / "half", Line(), GuardCallback(baseline_start=1, baseline_steps=8), max_steps=12)
    trainer = train(tmp_path / "half", Line(), GuardCallback(baseline_start=1, baseline_steps=8), max_steps=12,
                    resume=str(tmp_path / "half" / "checkpoint-6"))  # fmt: skip
    (restored,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, GuardCallback)]
    assert restored.baseline == (1, 8)
    assert [row["step"] for row in rows(tmp_path / "half" / "metrics.jsonl")] == list(range(1, 13))
    assert restored.guard.state_dict() == whole.guard.state_dict()


def told(callback, folder, series):
    """Logs as TRL would send them; returns the control at the end."""
    control, state = TrainerControl(), TrainerState()
    args = TrainingArguments(str(folder), report_to=[], use_cpu=True)
    for step, logs in enumerate(series, start=1):
        state.global_step = step
        callback.on_log(args, state, control, logs={"loss": 0.1, "grad_norm": 1.0, **logs})
    return control


@pytest.mark.parametrize(("mode", "stops"), [("shadow", False), ("act", True)])
def test_what_would_be_taken_back_is_stopped_only_if_it_may(tmp_path, mode, stops):
    fine = [{"entropy": 0.5 + 0.01 * (step % 3)} for step in range(10)]
    control = told(GuardCallback(mode, 2, 5), tmp_path, [*fine, *[{"entropy": 3.0}] * 4])
    assert control.should_training_stop == stops
    (event,) = rows(tmp_path / "events.jsonl")
    assert (event["rule"], event["taken"]) == ("entropy-explosion", stops)


def test_a_crash_of_the_guard_never_stops_a_training(tmp_path, caplog, monkeypatch):
    callback = GuardCallback()
    monkeypatch.setattr(Guard, "read", lambda *args: 1 / 0)
    control = told(callback, tmp_path, [{}, {}])
    assert not control.should_training_stop
    assert callback.disabled == "ZeroDivisionError: division by zero"
    assert sum("switched itself off" in record.message for record in caplog.records) == 1


def test_evaluations_and_summaries_are_not_steps(tmp_path):
    control, state = TrainerControl(), TrainerState()
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    GuardCallback().on_log(args, state, control, logs={"eval_loss": math.nan})
    GuardCallback().on_log(args, state, control, logs={"train_runtime": 3.0, "train_loss": math.nan})
    assert not control.should_training_stop
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_declared():
    for key in METRIC_OF.values():
        check_key(key)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'shadow' or 'act'"):
        GuardCallback("acting")


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl (extra: peers)")
def test_a_real_grpo_run_is_watched(tmp_path, nano):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        str(tmp_path), max_steps=3, logging_steps=1, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, gradient_checkpointing=False,
        save_strategy="no",
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": [f"{a} + {b} =" for a in range(4) for b in range(4)]})
    trainer = GRPOTrainer(
        nano.model, lambda completions, **_: [float(len(text)) for text in completions], args, train_dataset=data,
        processing_class=nano.tokenizer, callbacks=[GuardCallback(baseline_start=0, baseline_steps=2)],
    )  # fmt: skip
    trainer.train()
    logged = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert {"reward/mean", "reward/zero_signal", "policy/entropy", "length/mean", "length/truncated"} <= logged[
        0
    ].keys()
    assert diagnose(tmp_path / "metrics.jsonl").facts


@pytest.mark.slow
def test_a_training_that_begins_anew_keeps_the_files_it_finds(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine, a week's work\n")
    train(tmp_path, Line(), GuardCallback(), max_steps=2)
    train(tmp_path, Line(), GuardCallback(), max_steps=2)
    assert (tmp_path / "metrics.jsonl.before-1").read_text() == "mine, a week's work\n"
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl.before-2")] == [1, 2]
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.slow
def test_a_training_that_continues_forgets_its_own_later_lines_only(tmp_path):
    train(tmp_path, Line(), GuardCallback(), max_steps=12)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("a note\n")
    train(tmp_path, Line(), GuardCallback(), max_steps=8, resume=str(tmp_path / "checkpoint-6"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[6] == "a note"
    assert [json.loads(line)["step"] for line in lines if line != "a note"] == list(range(1, 9))
