"""The Kronecker-product step against its formulas, the fit it comes from, and what it does not depend on."""

import pytest
import torch

from heliostat.optim import KroneckerProduct
from heliostat.optim.matrices.kronecker_product import RELATIVE_DAMPING

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.999), "statistics_ema": 0.8}


def gradients(num, shape=(4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in shape)
    return [left @ torch.randn(*shape, generator=generator, dtype=torch.float64) @ right for _ in range(num)]


def moves_of(values, **settings):
    """Steps, divided by the learning rate, that these gradients make."""
    weight = torch.nn.Parameter(torch.zeros_like(values[0]))
    optimizer = KroneckerProduct([weight], **{**SETTINGS, **settings})
    moves = []
    for value in values:
        before = weight.detach().clone()
        weight.grad = value.clone()
        optimizer.step()
        moves.append((before - weight.detach()) / optimizer.param_groups[0]["lr"])
    return moves, optimizer.state[weight]


def inverse_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=RELATIVE_DAMPING * values.mean()).rsqrt()) @ vectors.T


def inverse(matrix):
    return inverse_root(matrix) @ inverse_root(matrix)


def started(gradient):
    """Three alternations on the first gradient with dense solves."""
    p, q = gradient.shape
    b = torch.eye(q, dtype=torch.float64) * gradient.square().mean()
    for _ in range(3):
        a = gradient @ torch.linalg.solve(b, gradient.T) / q
        a = a + RELATIVE_DAMPING * a.trace() / p * torch.eye(p)
        b = gradient.T @ torch.linalg.solve(a, gradient) / p
        b = b + RELATIVE_DAMPING * b.trace() / q * torch.eye(q)
    return a, b


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (2, 6), (1, 4)])
def test_renewed_at_every_step_it_is_the_two_formulas_written_out(shape):
    values = gradients(8, shape)
    moves, _ = moves_of(values, precondition_every=1)
    (a, b), mean = started(values[0]), torch.zeros(shape, dtype=torch.float64)
    for count, (gradient, move) in enumerate(zip(values, moves, strict=True), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        if count > 1:
            new_a = gradient @ inverse(b) @ gradient.T / shape[1]
            new_b = gradient.T @ inverse(a) @ gradient / shape[0]
            a, b = 0.8 * a + 0.2 * new_a, 0.8 * b + 0.2 * new_b
        expected = inverse_root(a) @ mean @ inverse_root(b) / (1 - 0.9**count)
        torch.testing.assert_close(move, expected, rtol=1e-6, atol=1e-6)


def test_between_renewals_the_diagonals_in_the_old_bases_stand_for_the_eigenvalues():
    """Of six steps the first four renew: three because they are the first, one because three have passed."""
    values = gradients(6)
    moves, state = moves_of(values, precondition_every=3)
    _, before = moves_of(values[:4], precondition_every=3)
    u, v = before["left_basis"][0], before["right_basis"][0]
    a, b = (before[f"{side}_factor"][0].diagonal() for side in ("left", "right"))
    mean = u @ before["mean"][0] @ v.T
    for gradient in values[4:]:
        mean = 0.9 * mean + 0.1 * gradient
        squares = (u.T @ gradient @ v).square()
        a, b = 0.8 * a + 0.2 * (squares / b).mean(1), 0.8 * b + 0.2 * (squares / a[:, None]).mean(0)
    expected = u @ ((u.T @ mean @ v) / (a[:, None] * b).sqrt()) @ v.T / (1 - 0.9**6)
    torch.testing.assert_close(moves[-1], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state["left_basis"][0], u)


def divergence(values, a, b):
    """What the matrix-normal fit minimises: mean of tr(A^-1 G B^-1 G') + q log det A + p log det B."""
    p, q = values[0].shape
    fit = torch.stack([(torch.linalg.inv(a) @ g @ torch.linalg.inv(b) @ g.T).trace() for g in values]).mean()
    return fit + q * torch.logdet(a) + p * torch.logdet(b)


@pytest.mark.slow
def test_the_factors_settle_where_the_divergence_has_no_slope():
    """Gradients over and over, with long memories: the projection on Kronecker products, found without its formulas."""
    values = gradients(12)
    _, state = moves_of(values * 150, precondition_every=1, statistics_ema=0.995)
    factors = []
    for side in ("left", "right"):
        factor, basis = state[f"{side}_factor"][0], state[f"{side}_basis"][0]
        lower = torch.tril(factor)
        factors.append((basis @ (lower + torch.tril(lower, -1).T) @ basis.T).requires_grad_())
    divergence(values, *factors).backward()
    for factor in factors:
        slope = factor.detach() @ factor.grad @ factor.detach()  # without units: zero means A = E[G B^-1 G'] / q
        assert float(slope.norm() / factor.detach().norm()) < 0.02 * len(factor)
    apart = [f.detach() * torch.diag(torch.linspace(0.5, 1.5, 4, dtype=torch.float64)) for f in factors]
    assert divergence(values, *(f.detach() for f in factors)) < divergence(values, *apart)


def test_one_gradient_over_and_over_is_stepped_along_with_all_singular_values_equal():
    (value,) = gradients(1)
    moves, _ = moves_of([value] * 30, betas=(0.0, 0.999), precondition_every=5)
    u, _, vt = torch.linalg.svd(value)
    along = u.T @ moves[-1] @ vt.T
    assert float((along - torch.diag(along.diagonal())).abs().max()) < 1e-6
    assert float(along.diagonal().max() / along.diagonal().min()) < 1.01


def test_units_and_rotations_of_the_gradient_do_not_matter():
    values = gradients(25)
    plain, _ = moves_of(values)
    scaled, _ = moves_of([1e-6 * value for value in values])
    rotations = [torch.linalg.qr(value).Q for value in gradients(2, seed=1)]
    rotated, _ = moves_of([rotations[0] @ value @ rotations[1] for value in values])
    for k in (0, 5, 24):
        torch.testing.assert_close(scaled[k], plain[k], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(rotated[k], rotations[0] @ plain[k] @ rotations[1], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_separable_scales_are_divided_out():
    """Independent entries of size l_i r_j: every entry's step has the same size in the long run."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.tensor([3.0, 1.0, 0.3]).double(), torch.tensor([3.0, 1.0, 0.3, 0.1]).double()
    values = [left[:, None] * torch.randn(3, 4, generator=generator, dtype=torch.float64) * right for _ in range(2000)]
    moves, _ = moves_of(values, betas=(0.0, 0.999), statistics_ema=0.99)
    sizes = torch.stack(moves[1000:]).square().mean(0).sqrt()
    torch.testing.assert_close(sizes, torch.ones(3, 4).double(), rtol=0.15, atol=0.0)


def test_a_block_without_a_gradient_waits_and_one_that_falls_silent_keeps_its_factors():
    values = gradients(40, (4, 8))
    for value in values[:2]:
        value[:, 4:] = 0.0
    for value in values[5:38]:
        value[:, 4:] = 0.0
    moves, state = moves_of(values, block_size=4, precondition_every=3)
    assert state["num_waiting"] == 0
    assert not moves[1][:, 4:].any()
    assert moves[2][:, 4:].any()
    kept = moves_of([value[:, 4:] for value in values[2:5]], precondition_every=100)[1]
    factor = state["right_factor"][1]
    assert float(factor.trace()) > 0.3 * float(kept["right_factor"][0].trace())
    assert all(bool(torch.isfinite(move).all()) for move in moves)


def test_blocks_are_matrices_of_their_own():
    values = gradients(12, (4, 9))
    together, _ = moves_of(values, block_size=4, precondition_every=2)
    for k in range(3):
        apart, _ = moves_of([value[:, 3 * k : 3 * k + 3] for value in values], precondition_every=2)
        torch.testing.assert_close(together[-1][:, 3 * k : 3 * k + 3], apart[-1])


@pytest.mark.slow
def test_bases_stay_orthogonal_through_hundreds_of_renewals():
    values = [value.float() for value in gradients(300, (6, 6))]
    _, state = moves_of(values, precondition_every=1)
    for key in ("left_basis", "right_basis"):
        basis = state[key][0]
        assert float((basis.T @ basis - torch.eye(6)).abs().max()) < 5e-6


def test_vectors_and_long_sides_are_adamw():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 40))
    optimizer = KroneckerProduct(net.named_parameters(), max_size=16)
    assert {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]} == {
        "0.weight": "kronecker-product",
        **dict.fromkeys(["0.bias", "1.weight", "1.bias"], "adamw"),
    }


@pytest.mark.parametrize(
    "settings", [{"block_size": 0}, {"lr": -1.0}, {"statistics_ema": 1.0}, {"precondition_every": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        KroneckerProduct([torch.nn.Parameter(torch.zeros(2, 2))], **settings)


def test_a_module_is_its_named_parameters():
    model = torch.nn.Linear(3, 2)
    whole, named = KroneckerProduct(model), KroneckerProduct(model.named_parameters())
    assert [group["rule"] for group in whole.param_groups] == [group["rule"] for group in named.param_groups]
    ours, theirs = ([p for group in one.param_groups for p in group["params"]] for one in (whole, named))
    assert all(p is q for p, q in zip(ours, theirs, strict=True))
