"""Eva against the dense rank-one solve, its limits, and its hand-over to AdamW."""

import pytest
import torch

from heliostat.optim import Eva, Rank1NaturalGradient


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()


def data(num=8):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (num,), generator=generator)


def matrix(layer, of=lambda p: p.detach()):
    return torch.cat([of(layer.weight), of(layer.bias)[:, None]], 1).clone()


def backward(net, num=8):
    inputs, labels = data(num)
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(inputs), labels).backward()


def test_a_step_is_the_dense_solve_with_running_means():
    net = model()
    optimizer = Eva(net, lr=0.1, damping=0.2, ema=0.3, momentum=0.0)
    a = b = None
    for step in range(3):
        backward(net, num=4 + step)
        inputs, _ = data(4 + step)
        new_a, new_b = torch.cat([inputs.mean(0), torch.ones(1, dtype=torch.float64)]), net[0].bias.grad.clone()
        a, b = (new_a, new_b) if a is None else (0.3 * a + 0.7 * new_a, 0.3 * b + 0.7 * new_b)
        before, gradient = matrix(net[0]), matrix(net[0], lambda p: p.grad)
        optimizer.step()
        score = torch.outer(b, a).reshape(-1)
        fisher = 0.2 * torch.eye(len(score), dtype=torch.float64) + torch.outer(score, score)
        expected = before - 0.1 * torch.linalg.solve(fisher, gradient.reshape(-1)).view_as(before)
        torch.testing.assert_close(matrix(net[0]), expected)


def test_one_row_without_memory_is_rank_one_with_that_rows_score():
    net, other = model(), model()
    inputs, labels = data(1)
    optimizer = Eva(net, lr=0.1, damping=0.5, ema=0.0, momentum=0.0)
    backward(net, 1)
    optimizer.step()
    rank1 = Rank1NaturalGradient(other.named_parameters(), lr=0.1, damping=0.5, block="layer")
    with rank1.score():
        torch.nn.functional.cross_entropy(other(inputs), labels).backward()
    backward(other, 1)
    rank1.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_huge_damping_is_sgd_with_the_quotient():
    net, other = model(), model()
    optimizer = Eva(net, lr=1e9, damping=1e9 / 0.05, momentum=0.9)
    sgd = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for one, step in ((net, optimizer), (other, sgd)):
            backward(one)
            step.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_what_is_not_covered_is_adamw_bit_for_bit_and_the_groups_say_so():
    net, other = model(), model()
    optimizer = Eva(net, lr=0.1, max_size=2, adamw_lr=0.01, weight_decay=0.1)
    assert {group["rule"] for group in optimizer.param_groups} == {"adamw"}
    assert "rule: adamw" in repr(optimizer)
    decay = [{"params": [p for p in other.parameters() if p.ndim >= 2], "weight_decay": 0.1}]
    decay += [{"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decay, lr=0.01, fused=True)
    for _ in range(3):
        for one, step in ((net, optimizer), (other, adamw)):
            backward(one)
            step.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_a_schedule_scales_both_learning_rates():
    optimizer = Eva(torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.Linear(3, 3)), lr=0.5, adamw_lr=0.01)
    scales = {group["rule"]: group.get("lr_scale", 1.0) for group in optimizer.param_groups}
    assert scales == {"layers": 1.0, "adamw": pytest.approx(0.02)}


def test_the_trust_region_bounds_the_first_step():
    net = model()
    optimizer = Eva(net, lr=1.0, damping=0.1, momentum=0.0, max_kl=1e-4)
    before = [matrix(net[0]), matrix(net[2])]
    backward(net)
    gradients = [matrix(net[0], lambda p: p.grad), matrix(net[2], lambda p: p.grad)]
    optimizer.step()
    moved = [before[0] - matrix(net[0]), before[1] - matrix(net[2])]
    along = sum(float((d * g).sum()) for d, g in zip(moved, gradients, strict=True))
    # d = s d0 with s^2 <d0, g> / 2 = max_kl; and <d, g> = s <d0, g>.
    full = model()
    optimizer = Eva(full, lr=1.0, damping=0.1, momentum=0.0)
    backward(full)
    optimizer.step()
    pairs = zip(before, (full[0], full[2]), gradients, strict=True)
    whole = sum(float(((b - matrix(layer)) * g).sum()) for b, layer, g in pairs)
    assert 0.5 * along**2 / whole == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize("settings", [{"damping": 0.0}, {"ema": 1.0}, {"momentum": 1.0}, {"lr": -1.0}, {"max_kl": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Eva(model(), **{"lr": 0.1, **settings})
