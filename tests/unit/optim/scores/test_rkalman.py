"""R-Kalman against the dense filter, in covariance and in information form, and its three kinds of measurement."""

import pytest
import torch

from heliostat.optim import Rank1NaturalGradient, RKalman, SkippedStepWarning

eye = torch.eye


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(1, 2, generator=generator, dtype=torch.float64)


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def jacobian(net, inputs):
    rows = []
    for output in net(inputs).reshape(-1):
        found = torch.autograd.grad(output, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def measure(net, optimizer, seed):
    inputs, targets = data(seed)
    optimizer.step(measurement=lambda: (net(inputs).reshape(-1), targets.reshape(-1)))


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_low_rank_form_with_room_for_every_row_is_the_full_filter_in_both_its_forms(rho):
    net = model()
    settings = {"form": "low-rank", "rank": 100, "covariance": 0.3, "noise": 0.5, "noise_ema": 1.0, "rho": rho}
    optimizer = RKalman(net.parameters(), **settings)
    size = len(flat(net))
    covariance, information = 0.3 * eye(size, dtype=torch.float64), eye(size, dtype=torch.float64) / 0.3
    for seed in range(4):
        inputs, targets = data(seed)
        rows, innovation = jacobian(net, inputs), (targets - net(inputs)).detach().reshape(-1)
        gradient = -rows.T @ innovation / 0.5
        shrunk = torch.linalg.inv(torch.linalg.inv(covariance) + rho * gradient @ gradient * eye(size))
        gain = shrunk @ rows.T @ torch.linalg.inv(rows @ shrunk @ rows.T + 0.5 * eye(2, dtype=torch.float64))
        covariance = shrunk - gain @ rows @ shrunk
        information = information + rho * gradient @ gradient * eye(size) + rows.T @ rows / 0.5
        expected = flat(net) + gain @ innovation
        measure(net, optimizer, seed)
        torch.testing.assert_close(flat(net), expected)
        torch.testing.assert_close(torch.linalg.inv(information), covariance)


def test_the_diagonal_form_keeps_the_diagonal_of_the_full_update():
    net = model()
    optimizer = RKalman(net.parameters(), covariance=0.3, noise=0.5, noise_ema=1.0, rho=0.2)
    variance = torch.full_like(flat(net), 0.3)
    for seed in range(3):
        inputs, targets = data(seed)
        rows, innovation = jacobian(net, inputs), (targets - net(inputs)).detach().reshape(-1)
        gradient = rows.T @ innovation / 0.5
        variance = variance / (1 + 0.2 * (gradient @ gradient) * variance)
        gain = (variance[:, None] * rows.T) @ torch.linalg.inv(
            (rows * variance) @ rows.T + 0.5 * eye(2, dtype=torch.float64)
        )
        expected = flat(net) + gain @ innovation
        variance = variance - (gain * (rows * variance).T).sum(1)
        measure(net, optimizer, seed)
        torch.testing.assert_close(flat(net), expected)
        found = torch.cat([optimizer.state[p]["variance"].reshape(-1) for p in net.parameters()])
        torch.testing.assert_close(found, variance)
        assert float(found.min()) > 0


@pytest.mark.parametrize("form", ["diagonal", "low-rank"])
def test_linear_regression_of_one_weight_is_the_posterior_mean(form):
    """w ~ N(0, 2), y = x w + N(0, 0.5): the filter is exact Bayes, in either form."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = RKalman([weight], covariance=2.0, noise=0.5, noise_ema=1.0, form=form)
    xs, ys = torch.tensor([1.0, -0.5, 2.0, 0.3]).double(), torch.tensor([0.9, -0.2, 2.5, 0.0]).double()
    for x, y in zip(xs, ys, strict=True):
        optimizer.step(measurement=lambda x=x, y=y: (x * weight, y.reshape(1)))
    precision = 1 / 2.0 + (xs**2).sum() / 0.5
    torch.testing.assert_close(weight.detach(), ((xs * ys).sum() / 0.5 / precision).reshape(1))


def test_a_truncated_low_rank_form_keeps_the_diagonal_of_the_information():
    net = model()
    settings = {"form": "low-rank", "rank": 3, "covariance": 0.3, "noise_ema": 1.0}
    optimizer = RKalman(net.parameters(), **settings)
    diagonal = torch.full_like(flat(net), 1 / 0.3)
    for seed in range(4):
        diagonal = diagonal + (jacobian(net, data(seed)[0]) ** 2).sum(0)
        measure(net, optimizer, seed)
    states = [optimizer.state[p] for p in net.parameters()]
    assert all(len(state["rows"]) == 3 for state in states)
    kept = torch.cat([(state["precision"] + (state["rows"] ** 2).sum(0)).reshape(-1) for state in states])
    torch.testing.assert_close(kept, diagonal)


def test_first_scores_are_rank_one_natural_gradient_with_damping_one_over_the_variance():
    one, other = model(), model()
    inputs, targets = data()
    kalman = RKalman(one.parameters(), lr=0.1, covariance=1 / 0.4, num_scores=2)
    rank1 = Rank1NaturalGradient(other.parameters(), lr=0.1, damping=0.4, num_scores=2)
    for net, optimizer in ((one, kalman), (other, rank1)):
        ((net(inputs) - targets) ** 2).mean().backward()
        optimizer.step(score_closure=lambda net=net: net(inputs).reshape(-1))
    torch.testing.assert_close(flat(one), flat(other))


def test_the_loss_as_a_measurement_is_a_polyak_like_step():
    weight = torch.nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    optimizer = RKalman([weight], covariance=0.5, noise=0.1, noise_ema=0.9)
    loss = 0.5 * (weight**2).sum()
    loss.backward()
    g = weight.grad.clone()
    innovation_variance = 0.5 * g @ g + 0.1
    expected = weight.detach() - 0.5 * g * loss.item() / innovation_variance
    optimizer.step(loss=loss.item())
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(optimizer.state[weight]["variance"], 0.5 - (0.5 * g) ** 2 / innovation_variance)
    assert optimizer.noise == pytest.approx(0.9 * 0.1 + 0.1 * loss.item() ** 2)


def test_variances_die_out_without_noise_or_forgetting_and_only_then():
    final = {}
    for name, settings in (("none", {}), ("noise", {"process_noise": 1e-3}), ("forgetting", {"forgetting": 0.9})):
        net = model()
        optimizer = RKalman(net.parameters(), covariance=0.3, noise_ema=1.0, **settings)
        previous = 0.3
        for seed in range(30):
            measure(net, optimizer, seed)
            largest = max(float(optimizer.state[p]["variance"].max()) for p in net.parameters())
            assert settings or largest <= previous
            previous = largest
        final[name] = float(optimizer.state[net[2].bias]["variance"].mean())
    assert final["none"] < 0.9 * min(final["noise"], final["forgetting"])


@pytest.mark.parametrize(
    "settings", [{"covariance": 0.0}, {"rho": -1.0}, {"noise_ema": 2.0}, {"forgetting": 0.0}, {"form": "full"}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RKalman(model().parameters(), **settings)


@pytest.mark.parametrize("form", ["diagonal", "low-rank"])
def test_a_measured_step_that_leaves_the_range_is_taken_back_though_no_weight_has_a_gradient(form):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = RKalman(model.parameters(), lr=1e38, covariance=1.0, form=form)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    inputs = torch.randn(2, 4)
    with pytest.warns(SkippedStepWarning):
        optimizer.step(measurement=lambda: (model(inputs)[:, 0], torch.full((2,), 100.0)))
    assert all(map(torch.equal, before, model.parameters()))
    assert (optimizer.num_skipped, optimizer.num_steps) == (1, 0)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step(measurement=lambda: (model(inputs)[:, 0], torch.full((2,), 100.0)))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert not any(map(torch.equal, before, model.parameters()))
