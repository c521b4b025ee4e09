"""Measured steps drawn on the exact curves."""

import json
import re
from pathlib import Path

import pytest

from heliostat.theory import MeasuredStep, binary_pmd_mean, draw_measured

MEASURED = Path(__file__).parents[3] / "studies" / "pmd" / "measured.jsonl"
STEP = MeasuredStep(tau=0.2, success=0.25, lam=0.5, log_ratio_correct=1.0, log_ratio_incorrect=-1.0)


@pytest.mark.parametrize("num_taus", [0, 5])
def test_temperatures_that_cannot_be_told_apart_are_refused(tmp_path, num_taus):
    steps = [MeasuredStep(0.1 * (k + 1), 0.5, 0.1, 0.1, -0.1) for k in range(num_taus)]
    with pytest.raises(ValueError, match=f"1 to 4 temperatures can be drawn, got {num_taus}"):
        draw_measured(steps, tmp_path)


@pytest.mark.slow
def test_points_and_curves_are_drawn_once_for_each_temperature(tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_measured([STEP, STEP, MeasuredStep(1.0, 0.5, 0.1, 0.1, -0.1)], tmp_path / "new")
    text = path.read_text(encoding="utf-8")
    assert path.name == "measured.svg"
    assert re.findall(r"τ = (\S+), (exact|measured)", text)[:4] == [
        ("0.2", "exact"),
        ("0.2", "measured"),
        ("1", "exact"),
        ("1", "measured"),
    ]
    assert "nan" not in text.lower()


@pytest.mark.slow
def test_the_trainers_finished_phases_lie_on_the_curves():
    """The committed measurement behind the page's picture, against the exact step."""
    lines = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    assert len({(line["objective.tau"], line["reward/success"]) for line in lines}) == len(lines) == 21
    for line in lines:
        exact = binary_pmd_mean(line["reward/success"], line["objective.tau"])
        assert line["policy/lambda_hat"] == pytest.approx(float(exact.lam), rel=5e-2)
        assert line["policy/log_ratio_correct"] == pytest.approx(float(exact.ratio_correct.log()), abs=2e-2)
        assert line["policy/log_ratio_incorrect"] == pytest.approx(
            float(exact.ratio_incorrect.log()), rel=1e-2, abs=1e-2
        )
