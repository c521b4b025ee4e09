"""A recorded short curve: a change of code that changes a number must say so by re-recording it.

    python -m tests.promises.test_golden        # record anew

Sampled tokens agree across machines except where a uniform number falls within rounding of a boundary, so the curve is
the same up to rounding: numbers are compared to one part in a thousand.
"""

import json
import tempfile
from pathlib import Path

import pytest

from heliostat.train import run_recipe
from tests.support import small

GOLDEN = Path(__file__).parent / "golden_curve.json"
KEYS = (
    "loss/sft",
    "reward/mean",
    "policy/entropy",
    "policy/lambda_hat",
    "policy/chi_square",
    "length/mean",
    "loss/objective",
    "optim/grad_norm",
    "eval/pass@1",
    "compute/update_flops",
)


def curve(folder: Path) -> list[dict[str, float]]:
    run_recipe(small.recipe(folder), folder / "run", "small")
    return [{key: line[key] for key in ("step", *KEYS) if key in line} for line in small.metrics(folder / "run")]


def test_the_curve_is_the_recorded_one(tmp_path):
    recorded = json.loads(GOLDEN.read_text())
    actual = curve(tmp_path)
    assert [line.keys() for line in actual] == [line.keys() for line in recorded]
    for ours, theirs in zip(actual, recorded, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-5), f"step {theirs['step']}: {key}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(line) for line in curve(Path(folder))) + "\n]\n")
