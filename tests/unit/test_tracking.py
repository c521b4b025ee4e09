"""Trackers: what is logged comes back, what is not declared is refused, and a rewound log continues."""

import math
import sys
import types

import pytest

from heliostat.config import ConfigError, TrackingSection
from heliostat.tracking import HostedTracker, JsonlTracker, check_key, open_trackers, read_metrics, rewind


def test_lines_come_back_and_what_is_not_finite_is_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"reward/mean": 0.5, "policy/entropy": math.nan})
    tracker.close()
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [{"step": 1, "reward/mean": 0.5, "policy/entropy": None}]


def test_an_undeclared_key_is_refused_with_the_nearest(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with pytest.raises(KeyError, match="reward/mean"):
        tracker.log(1, {"reward/means": 0.5})
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []
    check_key("reward/mean:chain_sum")


def test_rewinding_drops_later_lines_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in range(4):
        tracker.log(step, {"reward/mean": float(step)})
    tracker.close()
    with path.open("a") as file:
        file.write('{"step": 4, "rewa')
    rewind(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2]


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(TrackingSection(tensorboard=True), tmp_path, {})
    for tracker in trackers:
        tracker.log(3, {"reward/mean": 0.25})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.25)]


def test_a_hosted_tracker_starts_logs_and_finishes(monkeypatch):
    calls = []
    client = types.ModuleType("fake_host")
    client.init = lambda **options: calls.append(("init", options))
    client.log = lambda values, step: calls.append(("log", values, step))
    client.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, "fake_host", client)
    tracker = HostedTracker("fake_host", "project", "run", {"train": 1})
    tracker.log(-5, {"loss/sft": 1.0})
    tracker.log(2, {"reward/mean": 0.5})
    tracker.close()
    assert calls == [
        ("init", {"project": "project", "name": "run", "config": {"train": 1}}),
        ("log", {"loss/sft": 1.0, "step": -5}, 0),  # hosts refuse negative steps, so the step is a value as well
        ("log", {"reward/mean": 0.5, "step": 2}, 2),
        ("finish",),
    ]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_starts(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # an import that fails
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'heliostat\[{package}\]'"):
        open_trackers(TrackingSection(**{package: "project"}), tmp_path, {})
    assert not (tmp_path / "metrics.jsonl").exists()
