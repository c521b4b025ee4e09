"""Trackers: what is logged comes back, what is not declared is refused, and a rewound log continues."""

import math

import pytest

from heliostat.tracking import JsonlTracker, check_key, read_metrics, rewind


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
