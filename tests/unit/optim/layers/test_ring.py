"""RING against dense solves, K-FAC written out beside it, and its damping."""

import pytest
import torch
from dense_fisher import dense_fisher

from heliostat.curvature import per_sample_scores, sampled_log_likelihood
from heliostat.optim import RING


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()


def data(num=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (num,), generator=generator)


def joined(layer, of):
    return torch.cat([of(layer.weight), of(layer.bias)[:, None]], 1).clone()


def loss_backward(net, seed=1):
    inputs, labels = data(seed=seed)
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(inputs), labels).backward()


def statistics(net, optimizer, seed):
    inputs, _ = data(seed=seed)
    with optimizer.statistics():
        sampled_log_likelihood(net(inputs), torch.Generator().manual_seed(seed)).backward()


def run(net, optimizer, steps=3):
    for seed in range(steps):
        loss_backward(net, seed)
        if optimizer.wants_statistics:
            statistics(net, optimizer, seed)
        optimizer.step()


def square_norm(net):
    return sum(float((p.grad**2).sum()) for p in net.parameters())


@pytest.mark.parametrize("form", ["factored", "exact"])
def test_a_step_is_the_dense_solve(form):
    net = model()
    optimizer = RING(net, lr=0.1, rho=0.5, damping=0.02, damping_form=form, momentum=0.0)
    loss_backward(net)
    statistics(net, optimizer, 1)
    before = [joined(net[i], lambda p: p.detach()) for i in (0, 2)]
    gradients = [joined(net[i], lambda p: p.grad) for i in (0, 2)]
    gamma = 0.02 + 0.5 * square_norm(net)
    optimizer.step()
    assert optimizer.gamma == pytest.approx(gamma)
    for i, old, gradient in zip((0, 2), before, gradients, strict=True):
        state = optimizer.state[net[i].weight]
        a, b = state["input_factor"], state["output_factor"]
        if form == "exact":
            dense = torch.kron(b, a) + gamma * torch.eye(gradient.numel(), dtype=torch.float64)
        else:
            pi = ((a.trace() / len(a)) / (b.trace() / len(b))) ** 0.5
            damped_a = a + pi * gamma**0.5 * torch.eye(len(a), dtype=torch.float64)
            damped_b = b + gamma**0.5 / pi * torch.eye(len(b), dtype=torch.float64)
            dense = torch.kron(damped_b, damped_a)
        expected = old - 0.1 * torch.linalg.solve(dense, gradient.reshape(-1)).view_as(old)
        error = (joined(net[i], lambda p: p.detach()) - expected).norm() / (old - expected).norm()
        assert float(error) < 1e-9


def test_without_rho_it_is_kfac_up_to_rounding():
    """K-FAC written out: running factors, pi-balanced damping, exact inverses, momentum, decoupled decay."""
    net, other = model(), model()
    optimizer = RING(net, lr=0.1, rho=0.0, damping=0.02, momentum=0.9, weight_decay=0.01, inverse_every=2)
    run(net, optimizer, 4)
    layers, factors, inverses, buffers = [other[0], other[2]], {}, {}, {}
    root = 0.02**0.5
    for seed in range(4):
        inputs, _ = data(seed=seed)
        hidden = [inputs, torch.tanh(other[0](inputs)).detach()]
        logits = other(inputs)
        with torch.no_grad():
            labels = torch.multinomial(
                torch.softmax(logits.float(), -1), 1, generator=torch.Generator().manual_seed(seed)
            )
        outputs = []
        pre = other[0](inputs)
        post = other[2](torch.tanh(pre))
        outputs = torch.autograd.grad(torch.log_softmax(post, -1).gather(1, labels).sum(), [pre, post])
        loss_backward(other, seed)
        for layer, x, e in zip(layers, hidden, outputs, strict=True):
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            for key, new in ((("a", layer), x.T @ x / 8), (("b", layer), e.T @ e * (1 / 8))):
                factors[key] = factors[key].mul_(0.95).add_(new, alpha=1 - 0.95) if key in factors else new
            a, b = factors["a", layer], factors["b", layer]
            if seed % 2 == 0:
                pi = (float(a.trace()) / len(a) / (float(b.trace()) / len(b))) ** 0.5
                for key, factor, shift in (("a", a, pi * root), ("b", b, root / pi)):
                    damped = factor + shift * torch.eye(len(factor), dtype=torch.float64)
                    inverses[key, layer] = torch.linalg.inv(damped)
            gradient = joined(layer, lambda p: p.grad)
            move = inverses["b", layer] @ gradient @ inverses["a", layer]
            buffer = buffers.setdefault(layer, torch.zeros_like(move)).mul_(0.9).add_(move)
            with torch.no_grad():
                layer.weight.mul_(1 - 0.1 * 0.01).add_(buffer[:, :-1], alpha=-0.1)
                layer.bias.add_(buffer[:, -1], alpha=-0.1)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_one_row_and_exact_damping_is_the_true_layerwise_natural_gradient():
    net = model()
    inputs, labels = data(1)
    optimizer = RING(net, lr=1.0, damping=0.1, damping_form="exact", momentum=0.0)
    with optimizer.statistics():
        torch.nn.functional.cross_entropy(net(inputs), labels, reduction="sum").backward()
    loss_backward(net)
    before, gradient = joined(net[2], lambda p: p.detach()), joined(net[2], lambda p: p.grad)
    scores = per_sample_scores(net, inputs, labels)
    u = torch.cat([scores["2.weight"][0], scores["2.bias"][0][:, None]], 1).reshape(-1)
    optimizer.step()
    fisher = torch.outer(u, u) + 0.1 * torch.eye(len(u), dtype=torch.float64)
    expected = before - torch.linalg.solve(fisher, gradient.reshape(-1)).view_as(before)
    torch.testing.assert_close(joined(net[2], lambda p: p.detach()), expected)


def test_factors_of_many_sampled_labels_approach_the_fisher_of_a_linear_model():
    """For one linear layer and one input, E[xx'] (x) E[ee'] is the Fisher matrix itself."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False)).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    fisher = dense_fisher(net, x)
    optimizer = RING(net, lr=0.1)
    with optimizer.statistics():
        sampled_log_likelihood(net(x.repeat(20_000, 1)), torch.Generator().manual_seed(0)).backward()
    net(x).sum().backward()
    optimizer.step()
    state = optimizer.state[net[0].weight]
    product = torch.kron(state["output_factor"], state["input_factor"])
    assert float((product - fisher).norm() / fisher.norm()) < 0.03


def test_huge_exact_damping_is_sgd_with_the_quotient():
    net, other = model(), model()
    run(net, RING(net, lr=1e9, damping=1e9 / 0.05, damping_form="exact", momentum=0.0), 1)
    sgd = torch.optim.SGD(other.parameters(), lr=0.05)
    loss_backward(other, 0)
    sgd.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_rho_damps_with_the_squared_gradient():
    steps = {}
    for rho in (0.0, 1.0, 100.0):
        net = model()
        before = joined(net[2], lambda p: p.detach())
        run(net, RING(net, lr=1.0, rho=rho, damping_form="exact", momentum=0.0), 1)
        steps[rho] = float((joined(net[2], lambda p: p.detach()) - before).norm())
    assert steps[0.0] > steps[1.0] > steps[100.0]


def test_empirical_factors_are_those_of_the_loss_itself():
    one, other = model(), model()
    empirical = RING(one, lr=0.1, empirical=True, momentum=0.0)
    given = RING(other, lr=0.1, momentum=0.0)
    for seed in range(2):
        loss_backward(one, seed)
        empirical.step()
        inputs, labels = data(seed=seed)
        with given.statistics():
            torch.nn.functional.cross_entropy(other(inputs), labels, reduction="sum").backward()
        loss_backward(other, seed)
        given.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_statistics_are_asked_for_when_due_and_missed_ones_are_named():
    net = model()
    optimizer = RING(net, lr=0.1, statistics_every=3)
    loss_backward(net)
    with pytest.raises(RuntimeError, match="no statistics of layer '0'"):
        optimizer.step()
    wanted = []
    for seed in range(5):
        wanted.append(optimizer.wants_statistics)
        loss_backward(net, seed)
        optimizer.step(statistics_closure=lambda seed=seed: sampled_log_likelihood(net(data(seed=seed)[0])))
    assert wanted == [True, False, False, True, False]


@pytest.mark.parametrize(
    "settings", [{"damping": 0.0}, {"rho": -1.0}, {"ema": 1.0}, {"damping_form": "none"}, {"inverse_every": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RING(model(), **{"lr": 0.1, **settings})


def test_an_adapter_whose_other_half_is_zero_waits_for_it():
    """No row of its has an output gradient, and it has none itself: the other half moves first."""
    torch.manual_seed(0)
    down, up = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.zeros_(up.weight)
    model = torch.nn.Sequential(down, up)
    optimizer = RING(model, lr=0.1, damping=0.1, skip_zero_gradients=True)
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    before = down.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        with optimizer.statistics():
            torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()
        optimizer.step()
        assert bool(up.weight.any())
        assert torch.equal(down.weight, before) == (step == 0)
