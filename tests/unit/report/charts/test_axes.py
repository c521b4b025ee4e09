"""Drawn against what was spent: places come from the ledger's total, and a run that kept none is named."""

from pathlib import Path

import pytest

from heliostat.report.charts.axes import flops_axis, step_axis
from heliostat.report.charts.figures import Figures
from heliostat.report.page import render
from heliostat.report.runs.read import Run

SPENT = [
    {"step": 0.0, "loss/sft": 1.0},
    *(
        {
            "step": float(step),
            "reward/success": 0.1 * step,
            "compute/rollout_flops": 1e9 * step,
            "compute/update_flops": 2e9 * step,
            "compute/total_flops": 5e9 + 3e9 * step,  # 5e9: the collection
        }
        for step in (1, 2, 3)
    ),
]


def test_step_zero_lies_behind_the_collection_and_unknown_steps_nowhere():
    (place,) = flops_axis([Run("r", Path("r"), metrics=SPENT)]).places
    assert [place(step) for step in (0.0, 1.0, 3.0)] == [5.0, 8.0, 14.0]
    assert place(-4.0) is None
    assert flops_axis([Run("r", Path("r"), metrics=SPENT)]).name == "GFLOP"


def test_charts_move_and_everything_else_stays():
    run = Run("r", Path("r"), metrics=SPENT)
    by_step, by_flops = Figures([run]), Figures([run], flops_axis([run]))
    by_step.hero(), by_flops.hero()
    (line,), (moved,) = (figures.hover["pass-1"]["lines"] for figures in (by_step, by_flops))
    assert (line["x"], moved["x"]) == ([1, 2, 3], [8, 11, 14])
    assert line["y"] == moved["y"]
    assert by_flops.hover["pass-1"]["name"] == "GFLOP"
    assert "at GFLOP 8" in render([run], by="flops")
    assert step_axis([run]).places[0](7.0) == 7.0


def test_a_run_without_a_ledger_is_named():
    run = Run("old", Path("old"), metrics=[{"step": 1.0, "reward/success": 0.5}])
    with pytest.raises(ValueError, match="old has not logged compute/total_flops"):
        render([run], by="flops")
