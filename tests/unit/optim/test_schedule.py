import itertools

import pytest
import torch

from heliostat.config import ConfigError, OptimizerSection
from heliostat.optim import Schedule, build_optimizer


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_warm_up_reaches_the_peak_and_decay_reaches_the_floor(shape):
    schedule = Schedule(1.0, num_steps=110, shape=shape, warmup_steps=10, floor=0.1)
    lrs = [schedule.lr(step) for step in range(111)]
    assert lrs[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert lrs[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(lrs[10:]))
    assert lrs[110] == pytest.approx(0.1)
    assert lrs[60] == pytest.approx(0.55)


def test_constant_stays():
    assert {Schedule(0.3, 10, "constant").lr(step) for step in range(20)} == {0.3}


def test_decay_touches_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(OptimizerSection(name="adamw", weight_decay=0.1), model)
    assert {(p.ndim >= 2, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamm"}, "did you mean 'adamw'"),
        ({"name": "sgd", "momentun": 0.9}, "did you mean 'optimizer.momentum'|did you mean 'momentum'"),
    ],
)
def test_unknown_names_get_the_nearest(section, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerSection(**section), torch.nn.Linear(1, 1))
