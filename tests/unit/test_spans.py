"""Spans: silent unless timed, additive, and over when the block is."""

import time

import torch

from heliostat.spans import span, timed_spans


def test_spans_add_up_by_name_and_only_inside_the_block():
    with span("before"):
        pass
    with timed_spans() as seconds:
        for _ in range(2):
            with span("work"):
                time.sleep(0.01)
        with span("rest"):
            pass
    with span("after"):
        pass
    assert set(seconds) == {"work", "rest"}
    assert seconds["work"] >= 0.02  # sleeping never takes less


def test_torchs_profiler_sees_the_names():
    with torch.autograd.profiler.profile(use_kineto=False) as recorded, span("score"):
        torch.ones(2) + 1
    assert "heliostat/score" in {event.key for event in recorded.key_averages()}


def test_a_failure_inside_ends_the_timing():
    try:
        with timed_spans():
            raise RuntimeError
    except RuntimeError:
        pass
    with timed_spans() as seconds, span("work"):
        pass
    assert set(seconds) == {"work"}
