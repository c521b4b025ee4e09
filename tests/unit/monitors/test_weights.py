import pytest
import torch

from heliostat.monitors.weights import WeightProbe


def test_the_ratio_of_a_small_model_is_exact():
    weights = [torch.randn(3, 4), torch.randn(5)]
    probe = WeightProbe(weights)
    before = torch.cat([w.reshape(-1).clone() for w in weights])
    for w in weights:
        w += 0.1 * torch.randn_like(w)
    after = torch.cat([w.reshape(-1) for w in weights])
    ratio = probe.finish(probe.measure())["optim/update_ratio"]
    assert ratio == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    probe.remember()
    assert probe.finish(probe.measure())["optim/update_ratio"] == 0.0


def test_a_sample_of_a_large_model_is_close():
    torch.manual_seed(0)
    weights = [torch.randn(300, 300), torch.randn(777)]
    probe = WeightProbe(weights, max_entries=5000)
    before = torch.cat([w.reshape(-1).clone() for w in weights])
    for w in weights:
        w += 0.01 * torch.randn_like(w)
    after = torch.cat([w.reshape(-1) for w in weights])
    assert len(probe.start) <= 5002
    ratio = probe.finish(probe.measure())["optim/update_ratio"]
    assert ratio == pytest.approx(float((after - before).norm() / before.norm()), rel=0.05)
