"""The regularised gradient against autograd on the penalty itself, and what both modes must agree on."""

import pytest
import torch

from heliostat.optim import RENG


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()


def data(num=9):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (num,), generator=generator)


def mean_loss(net, cut=slice(None)):
    inputs, labels = data()
    return torch.nn.functional.cross_entropy(net(inputs[cut]), labels[cut])


def penalised_gradient(net, rho):
    loss = mean_loss(net)
    gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    penalty = loss + 0.5 * rho * sum((g**2).sum() for g in gradients)
    return torch.autograd.grad(penalty, list(net.parameters()))


def step_of(net, losses=None, rho=0.3, **settings):
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = RENG(torch.optim.SGD(net.parameters(), lr=1.0), rho=rho, **settings)
    optimizer.step(losses or (lambda: mean_loss(net)))
    return [b - p.detach() for b, p in zip(before, net.parameters(), strict=True)]


def test_double_backward_is_the_gradient_of_the_penalised_loss():
    expected = penalised_gradient(model(), 0.3)
    for found, right in zip(step_of(model(), mode="double-backward"), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_double_backward_over_micro_batches_uses_the_whole_gradient():
    net = model()

    def losses():
        return (mean_loss(net, slice(k, k + 3)) / 3 for k in (0, 3, 6))

    for found, right in zip(
        step_of(net, losses, mode="double-backward"), penalised_gradient(model(), 0.3), strict=True
    ):
        torch.testing.assert_close(found, right)


def test_the_finite_difference_tends_to_it_at_first_order():
    exact = torch.cat([g.reshape(-1) for g in penalised_gradient(model(), 0.3)])
    errors = [
        float((torch.cat([g.reshape(-1) for g in step_of(model(), radius=radius)]) - exact).norm())
        for radius in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_on_a_quadratic_both_are_exact():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    curvature = torch.tensor([3.0, 0.5], dtype=torch.float64)
    for mode in ("finite-difference", "double-backward"):
        net = torch.nn.ParameterList([weight.detach().clone()])
        optimizer = RENG(torch.optim.SGD(net.parameters(), lr=1.0), rho=0.1, mode=mode, radius=0.5)
        optimizer.step(lambda net=net: 0.5 * (curvature * net[0] ** 2).sum())
        gradient = curvature * weight.detach()
        torch.testing.assert_close(weight.detach() - net[0].detach(), gradient + 0.1 * curvature * gradient)


@pytest.mark.parametrize("mode", ["finite-difference", "double-backward"])
def test_without_penalty_it_is_the_base_bit_for_bit_in_one_pass(mode):
    one, other, calls = model(), model(), []
    optimizer = RENG(torch.optim.AdamW(one.parameters(), lr=0.1), rho=0.0, mode=mode)
    adamw = torch.optim.AdamW(other.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.step(lambda: calls.append(0) or mean_loss(one))
        adamw.zero_grad()
        mean_loss(other).backward()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert len(calls) == 3


def test_gradients_in_place_need_only_the_second_evaluation():
    one, other = model(), model()
    expected = step_of(one)
    optimizer = RENG(torch.optim.SGD(other.parameters(), lr=1.0), rho=0.3)
    before = [p.detach().clone() for p in other.parameters()]
    mean_loss(other).backward()
    optimizer.step(again=lambda: mean_loss(other))
    for b, p, e in zip(before, other.parameters(), expected, strict=True):
        torch.testing.assert_close(b - p.detach(), e)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.step()


def test_both_points_see_the_same_random_numbers_and_the_stream_goes_on():
    net, seen = model(), []

    def losses():
        noise = torch.rand(3)
        seen.append(noise)
        return mean_loss(net) * float(noise.sum())

    torch.manual_seed(4)
    step_of(net, losses)
    after = torch.rand(3)
    assert torch.equal(seen[0], seen[1])
    torch.manual_seed(4)
    assert torch.equal(torch.rand(3), seen[0])
    assert torch.equal(torch.rand(3), after)


def test_a_failure_at_the_second_point_leaves_the_weights_where_they_were():
    net, calls = model(), []
    before = [p.detach().clone() for p in net.parameters()]

    def losses():
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError
        return mean_loss(net)

    with pytest.raises(ZeroDivisionError):
        step_of(net, losses)
    assert all(torch.equal(b, p) for b, p in zip(before, net.parameters(), strict=True))


def test_schedules_and_cleared_state_reach_the_base():
    net = model()
    base = torch.optim.AdamW(net.parameters(), lr=0.1)
    optimizer = RENG(base, rho=0.1)
    optimizer.step(lambda: mean_loss(net))
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.5
    assert base.param_groups[0]["lr"] == 0.5
    optimizer.state.clear()
    assert not base.state


@pytest.mark.parametrize("settings", [{"rho": -1.0}, {"radius": 0.0}, {"mode": "exact"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RENG(torch.optim.SGD(model().parameters(), lr=0.1), **{"rho": 0.1, **settings})
