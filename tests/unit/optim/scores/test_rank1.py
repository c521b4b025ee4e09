"""Rank-1 natural gradient against dense linear algebra, its limits, and the two ways of giving it scores."""

import copy

import pytest
import torch

from heliostat.optim import Rank1NaturalGradient


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).to(dtype)


def data(dtype=torch.float64, num=12):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 3, (num,), generator=generator)


def log_probs(net, inputs, labels):
    return torch.log_softmax(net(inputs), -1).gather(1, labels[:, None]).squeeze(1)


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def ingredients(net, num_scores):
    """Gradient of the mean loss and the first scores, as plain vectors."""
    inputs, labels = data()
    each = log_probs(net, inputs, labels)
    gradient = flat(torch.autograd.grad(-each.mean(), list(net.parameters()), retain_graph=True))
    scores = [flat(torch.autograd.grad(each[k], list(net.parameters()), retain_graph=True)) for k in range(num_scores)]
    return gradient, torch.stack(scores, 1)


def one_step(net, num_scores=1, lr=0.1, steps=1, groups=None, by_context=False, **settings):
    inputs, labels = data(next(net.parameters()).dtype)
    optimizer = Rank1NaturalGradient(groups or net.named_parameters(), lr=lr, num_scores=num_scores, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        if by_context:
            for k in range(num_scores):
                with optimizer.score():
                    log_probs(net, inputs[k : k + 1], labels[k : k + 1]).sum().backward()
        (-log_probs(net, inputs, labels).mean()).backward()
        closure = None if by_context else lambda: log_probs(net, inputs[:num_scores], labels[:num_scores])
        optimizer.step(score_closure=closure)
    return optimizer


def dense_direction(gradient, scores, damping):
    fisher = torch.diag(damping) + scores @ scores.T / scores.shape[1]
    return torch.linalg.solve(fisher, gradient)


@pytest.mark.parametrize("num_scores", [1, 4])
@pytest.mark.parametrize("by_context", [True, False])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_a_step_is_the_dense_solve(num_scores, by_context, damping):
    net = model()
    before, (gradient, scores) = flat(net.parameters()), ingredients(net, num_scores)
    one_step(net, num_scores, damping=damping, by_context=by_context)
    expected = before - 0.1 * dense_direction(gradient, scores, torch.full_like(before, damping))
    torch.testing.assert_close(flat(net.parameters()), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("block", ["param", "layer"])
def test_blocks_are_block_diagonal_solves(block):
    net = model()
    before, (gradient, scores) = flat(net.parameters()), ingredients(net, 2)
    sizes = [p.numel() for p in net.parameters()]
    if block == "layer":
        sizes = [sizes[0] + sizes[1], sizes[2] + sizes[3]]
    one_step(net, 2, damping=0.1, block=block)
    pieces = [
        dense_direction(g, u, torch.full_like(g, 0.1))
        for g, u in zip(gradient.split(sizes), scores.split(sizes), strict=True)
    ]
    torch.testing.assert_close(flat(net.parameters()), before - 0.1 * torch.cat(pieces), rtol=1e-9, atol=1e-10)


def test_damping_may_differ_by_group():
    net = model()
    before, (gradient, scores) = flat(net.parameters()), ingredients(net, 3)
    dampings = [0.1, 2.0, 0.5, 0.01]
    groups = [{"params": [p], "damping": d} for p, d in zip(net.parameters(), dampings, strict=True)]
    one_step(net, 3, groups=groups)
    diagonal = torch.cat(
        [torch.full((p.numel(),), d, dtype=torch.float64) for p, d in zip(net.parameters(), dampings, strict=True)]
    )
    expected = before - 0.1 * dense_direction(gradient, scores, diagonal)
    torch.testing.assert_close(flat(net.parameters()), expected, rtol=1e-9, atol=1e-10)


def test_huge_damping_is_sgd_with_the_quotient():
    net, other = model(), model()
    one_step(net, lr=1e9, damping=1e9 / 0.05)
    inputs, labels = data()
    (-log_probs(other, inputs, labels).mean()).backward()
    torch.optim.SGD(other.parameters(), lr=0.05).step()
    torch.testing.assert_close(flat(net.parameters()), flat(other.parameters()), rtol=0, atol=1e-9)


def test_a_gradient_along_the_score_is_normalised():
    net = model()
    inputs, labels = data()
    optimizer = Rank1NaturalGradient(net.parameters(), lr=1.0, damping=0.3)
    before = flat(net.parameters())
    (3.0 * log_probs(net, inputs[:1], labels[:1]).sum()).backward()
    u = flat([p.grad for p in net.parameters()]) / 3.0
    optimizer.step(score_closure=lambda: log_probs(net, inputs[:1], labels[:1]))
    torch.testing.assert_close(before - flat(net.parameters()), 3.0 * u / (0.3 + u @ u))
    assert optimizer.report.score_square_norm == pytest.approx(float(u @ u))


def test_a_gradient_orthogonal_to_the_score_is_plain_sgd():
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = Rank1NaturalGradient([weight], lr=0.5, damping=2.0)
    with optimizer.score():
        weight[0].backward()
    (3.0 * weight[1]).backward()
    optimizer.step()
    assert torch.equal(weight.detach(), torch.tensor([0.0, -0.75, 0.0, 0.0], dtype=torch.float64))


def test_ready_scores_are_as_good_as_differentiated_ones():
    nets = model(), model()
    inputs, labels = data()
    each = log_probs(nets[1], inputs[:3], labels[:3])
    rows = [torch.autograd.grad(one, list(nets[1].parameters()), retain_graph=True) for one in each]
    one_step(nets[0], 3, damping=0.1)
    optimizer = Rank1NaturalGradient(nets[1].parameters(), lr=0.1, damping=0.1, num_scores=3)
    (-log_probs(nets[1], inputs, labels).mean()).backward()
    optimizer.step(
        scores={p: torch.stack(u) for p, u in zip(nets[1].parameters(), zip(*rows, strict=True), strict=True)}
    )
    torch.testing.assert_close(flat(nets[0].parameters()), flat(nets[1].parameters()), rtol=0, atol=1e-14)
    with pytest.raises(RuntimeError, match="as many samples for every parameter"):
        optimizer.step(scores={p: torch.zeros(1 + k, *p.shape) for k, p in enumerate(nets[1].parameters())})


def test_the_gradient_as_its_own_score_is_the_normalised_gradient():
    net = model()
    before, (gradient, _) = flat(net.parameters()), ingredients(net, 1)
    inputs, labels = data()
    optimizer = Rank1NaturalGradient(net.parameters(), lr=0.1, damping=0.2, source="gradient")
    (-log_probs(net, inputs, labels).mean()).backward()
    optimizer.step()
    torch.testing.assert_close(before - flat(net.parameters()), 0.1 * gradient / (0.2 + gradient @ gradient))


def test_averaged_scores_forget_by_their_weight_and_repeated_ones_change_nothing():
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, mean = Rank1NaturalGradient([weight], lr=1.0, ema=0.75), None
    for u in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.0, 4.0])):
        mean = u.double() if mean is None else 0.75 * mean + 0.25 * u.double()
        before, weight.grad = weight.detach().clone(), torch.tensor([1.0, -2.0], dtype=torch.float64)
        optimizer.step(scores={weight: u.double()[None]})
        expected = dense_direction(weight.grad, mean[:, None], torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(before - weight.detach(), expected)
    plain, averaged = model(), model()
    one_step(plain, 2, damping=0.3)
    one_step(averaged, 2, damping=0.3, ema=0.9)
    assert torch.equal(flat(plain.parameters()), flat(averaged.parameters()))


def test_the_trust_region_bounds_the_quadratic_form_and_only_shortens():
    net, free = model(), model()
    before, (gradient, scores) = flat(net.parameters()), ingredients(net, 2)
    optimizer = one_step(net, 2, lr=1.0, damping=0.1, max_kl=1e-3)
    step = flat(net.parameters()) - before
    fisher = 0.1 * torch.eye(len(before), dtype=torch.float64) + scores @ scores.T / 2
    assert float(0.5 * step @ fisher @ step) == pytest.approx(1e-3, rel=1e-6)
    assert optimizer.report.kl == pytest.approx(1e-3, rel=1e-6)
    one_step(free, 2, lr=1.0, damping=0.1)
    assert torch.nn.functional.cosine_similarity(step, flat(free.parameters()) - before, dim=0) > 1 - 1e-12
    small = one_step(model(), 2, lr=1e-6, damping=0.1, max_kl=1e-3)
    assert small.report.scale == 1.0
    assert gradient.norm() > 0


def test_momentum_and_decay_follow_their_formulas():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = Rank1NaturalGradient([weight], lr=0.1, damping=1.0, momentum=0.5, weight_decay=0.2)
    expected, buffer = weight.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        optimizer.zero_grad()
        with optimizer.score():
            (weight[0] * 2.0).backward()
        (weight[0] + (step + 1.0) * weight[1]).backward()
        optimizer.step()
        direction = torch.tensor([1.0 / 5.0, step + 1.0], dtype=torch.float64)
        buffer = 0.5 * buffer + direction
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * buffer
    torch.testing.assert_close(weight.detach(), expected)


def test_the_score_context_leaves_gradients_alone_also_when_it_fails():
    net = model()
    inputs, labels = data()
    optimizer = Rank1NaturalGradient(net.parameters(), lr=0.1)
    (-log_probs(net, inputs, labels).mean()).backward()
    kept = [p.grad for p in net.parameters()]
    with optimizer.score():
        log_probs(net, inputs[:1], labels[:1]).sum().backward()
    assert all(p.grad is k for p, k in zip(net.parameters(), kept, strict=True))
    with pytest.raises(ZeroDivisionError), optimizer.score():
        raise ZeroDivisionError
    assert all(p.grad is k for p, k in zip(net.parameters(), kept, strict=True))
    with pytest.raises(RuntimeError, match="saw no backward"), optimizer.score():
        pass
    optimizer.step()


def test_the_number_of_scores_is_checked():
    net = model()
    inputs, labels = data()
    optimizer = Rank1NaturalGradient(net.parameters(), lr=0.1, num_scores=2)
    (-log_probs(net, inputs, labels).mean()).backward()
    with optimizer.score():
        log_probs(net, inputs[:1], labels[:1]).sum().backward()
    with pytest.raises(RuntimeError, match="takes 2 scores and got 1"):
        optimizer.step()


def test_scores_come_one_by_one_or_all_at_once():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Rank1NaturalGradient([weight], lr=0.1, num_scores=2)
    with optimizer.score():
        weight.sum().backward()
    with pytest.raises(RuntimeError, match="not both"):
        optimizer.step(scores={weight: torch.ones(1, 2)})


def test_a_tensor_that_some_scores_do_not_reach_counts_as_zero_there():
    weights = [torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64)) for _ in range(3)]
    optimizer = Rank1NaturalGradient(weights, lr=0.1, num_scores=2, damping=0.5)
    with optimizer.score():
        (weights[0] ** 2).sum().backward()
    with optimizer.score():
        (weights[0].sum() * weights[1][0] + weights[1].sum() * 3.0).backward()
    before = flat(weights)
    for index, weight in enumerate(weights):
        weight.grad = torch.tensor([1.0, 2.0 + index], dtype=torch.float64)
    gradient = flat([weight.grad for weight in weights])
    scores = torch.tensor([[2.0, -2.0, 0, 0, 0, 0], [1.0, 1.0, 3.0, 3.0, 0, 0]], dtype=torch.float64).T
    optimizer.step()
    expected = dense_direction(gradient, scores, torch.full_like(gradient, 0.5))
    torch.testing.assert_close((before - flat(weights)) / 0.1, expected)


@pytest.mark.parametrize(
    "settings",
    [
        *({"lr": -1.0}, {"damping": 0.0}, {"num_scores": 0}, {"momentum": 1.0}, {"max_kl": 0.0}, {"block": "row"}),
        *({"ema": 1.0}, {"source": "hessian"}, {"num_scores": 2, "source": "gradient"}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Rank1NaturalGradient(model().parameters(), **{"lr": 0.1, **settings})


def test_layers_need_names():
    with pytest.raises(ValueError, match="named_parameters"):
        Rank1NaturalGradient(model().parameters(), lr=0.1, block="layer")


def test_bfloat16_weights_step_like_float32_ones_up_to_rounding():
    short, full = model(torch.bfloat16), None
    full = copy.deepcopy(short).float()
    before = flat(full.parameters())
    one_step(short, 2, lr=0.5, damping=0.5)
    one_step(full, 2, lr=0.5, damping=0.5)
    moved = flat(full.parameters()) - before
    assert float((flat(short.parameters()).float() - before - moved).norm() / moved.norm()) < 0.05
