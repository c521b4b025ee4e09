"""The live line on terminals of several widths."""

import io
import re

import pytest
from rich.console import Console

from heliostat.train.console.progress import Display

VALUES = {
    "reward/mean": 0.123,
    "reward/success": 0.45,
    "eval/pass@1": 0.5,
    "policy/entropy": 1.234,
    "policy/lambda_hat": 0.0123,
    "speed/step_tokens": 12345.0,
}
METRICS = ["reward 0.123", "solved 45.0%", "held-out 50.0%", "entropy 1.234", "λ̂ +0.0123", "12,345 tok/s"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]")


def last_line(width: int | None = None) -> str:
    """The line that a finished phase leaves; without a width, on no terminal."""
    file = io.StringIO()
    console = Console(file=file, width=width or 200, force_terminal=width is not None, color_system=None)
    display = Display(console)
    display.begin_phase("warm start", 1000)
    display.step(500, VALUES)
    display.step(1000, VALUES)
    display.end_phase()
    return [line for line in map(str.rstrip, CONTROL.split(file.getvalue())) if line][-1]


@pytest.mark.parametrize(
    ("width", "least_bar", "num_metrics"), [(60, 15, 0), (80, 20, 1), (120, 20, 4), (160, 20, 6)], ids=str
)
def test_counter_and_bar_stay_and_metrics_are_whole_or_absent(width, least_bar, num_metrics):
    line = last_line(width)
    assert len(line) <= width
    found = re.fullmatch(r"warm start (━+) 1000/1000 \d:\d\d  ETA 0:00(.*)", line)
    assert found, line
    assert len(found[1]) >= least_bar
    assert found[2] == "".join(f"  {metric}" for metric in METRICS[:num_metrics])


def test_no_width_is_too_narrow():
    assert len(last_line(12)) <= 12


def test_without_a_terminal_every_metric_is_there():
    assert last_line().split("  ") == ["warm start 1000/1000", "ETA 0:00", *METRICS]
