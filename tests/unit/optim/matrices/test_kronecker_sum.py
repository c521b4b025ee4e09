"""The Kronecker-sum step against its definition written out, and where it is Adam."""

import os
import subprocess
import sys

import pytest
import torch

from heliostat.linalg import kronecker_sum_from_marginals
from heliostat.optim import KroneckerSum


def gradients(num, shape=(4, 3)):
    generator = torch.Generator().manual_seed(0)
    left = torch.diag(torch.tensor([3.0, 1.0, 0.3, 0.1])[: shape[0]]).double()
    return [left @ torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(num)]


def feed(optimizer, weight, values):
    for value in values:
        weight.grad = value.clone()
        optimizer.step()


def test_a_step_is_its_definition():
    weight = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = KroneckerSum([weight], lr=0.1, betas=(0.9, 0.99), precondition_every=1, graft=False)
    mean, left, right = torch.zeros(4, 3).double(), torch.zeros(4, 4).double(), torch.zeros(3, 3).double()
    for count, gradient in enumerate(gradients(6), start=1):
        before = weight.detach().clone()
        feed(optimizer, weight, [gradient])
        mean = 0.9 * mean + 0.1 * gradient
        left, right = 0.95 * left + 0.05 * gradient @ gradient.T, 0.95 * right + 0.05 * gradient.T @ gradient
        correction = 1 - 0.95**count
        (lam, u), (mu, v) = torch.linalg.eigh(left / correction), torch.linalg.eigh(right / correction)
        trace = lam.sum()
        lam, mu = ((x.clamp(min=0) + 1e-4 * trace / len(x)) / (1 + 1e-4) for x in (lam, mu))
        solved = kronecker_sum_from_marginals(lam, mu * lam.sum() / mu.sum())
        moments = 1 / (solved.left[:, None] + solved.right)  # the model: its sums are the marginals
        torch.testing.assert_close(moments.sum(1), lam)
        expected = u @ ((u.T @ (mean / (1 - 0.9**count)) @ v) / moments.sqrt()) @ v.T
        torch.testing.assert_close((before - weight.detach()) / 0.1, expected, rtol=1e-4, atol=1e-5)


def test_grafting_gives_the_length_of_adams_step_and_keeps_the_direction():
    plain, grafted, adam = (torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)) for _ in range(3))
    optimizers = [
        KroneckerSum([plain], lr=0.1, graft=False),
        KroneckerSum([grafted], lr=0.1),
        torch.optim.Adam([adam], lr=0.1),
    ]
    for gradient in gradients(4):
        before = [w.detach().clone() for w in (plain, grafted, adam)]
        for weight, optimizer in zip((plain, grafted, adam), optimizers, strict=True):
            feed(optimizer, weight, [gradient])
        moves = [b - w.detach() for b, w in zip(before, (plain, grafted, adam), strict=True)]
        torch.testing.assert_close(moves[1].norm(), moves[2].norm())
        assert float(torch.nn.functional.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0)) > 1 - 1e-9


def test_constant_second_moments_are_adams_scaling_by_one_number():
    """Marginals of a multiple of the identity give l_i + r_j the same everywhere: the mean gradient over its size."""
    weight = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    optimizer = KroneckerSum([weight], lr=1.0, betas=(0.0, 0.9), statistics_ema=0.0, graft=False)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    feed(optimizer, weight, [2.0 * rotation])
    # G G' = 4 I, so each of the nine entries has mean square 4/3 in any basis.
    torch.testing.assert_close(-weight.detach(), 2.0 * rotation / (4.0 / 3.0) ** 0.5, rtol=1e-5, atol=1e-6)


def test_a_single_row_is_rmsprop_in_the_columns_eigenbasis():
    weight = torch.nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    optimizer = KroneckerSum([weight], lr=1.0, betas=(0.0, 0.9), statistics_ema=0.5, precondition_every=1, graft=False)
    values = gradients(5, (1, 3))
    feed(optimizer, weight, values[:-1])
    before = weight.detach().clone()
    feed(optimizer, weight, values[-1:])
    second = sum(0.5 ** (4 - k) * 0.5 * g.T @ g for k, g in enumerate(values)) / (1 - 0.5**5)
    mu, v = torch.linalg.eigh(second)
    damped = (mu + 1e-4 * mu.sum() / 3) / (1 + 1e-4)
    torch.testing.assert_close(before - weight.detach(), (values[-1] @ v / damped.sqrt()) @ v.T, rtol=1e-4, atol=1e-5)


def test_vectors_and_long_sides_are_adamw_and_the_groups_say_so():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 40), torch.nn.LayerNorm(40)).double()
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 40), torch.nn.LayerNorm(40)).double()
    other.load_state_dict(net.state_dict())
    optimizer = KroneckerSum(net.named_parameters(), lr=0.01, max_size=16)
    assert {n: g["rule"] for g in optimizer.param_groups for n in g["param_names"]} == {
        "0.weight": "kronecker-sum",
        **dict.fromkeys(["0.bias", "1.weight", "1.bias", "2.weight", "2.bias"], "adamw"),
    }
    adamw = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    adamw.step()
    same = [torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True)]
    assert same == [False, True, True, True, True, True]


def test_eigenbases_are_kept_between_renewals():
    weight = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = KroneckerSum([weight], lr=0.1, precondition_every=3)
    bases = []
    for gradient in gradients(5):
        feed(optimizer, weight, [gradient])
        bases.append(optimizer.state[weight]["left_basis"].clone())
    assert torch.equal(bases[0], bases[2])
    assert not torch.equal(bases[2], bases[3])
    assert torch.equal(bases[3], bases[4])


def test_blocks_are_matrices_of_their_own():
    weight = torch.nn.Parameter(torch.zeros(4, 9, dtype=torch.float64))
    parts = [torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)) for _ in range(3)]
    together = KroneckerSum([weight], lr=0.1, graft=False, block_size=4, precondition_every=2)
    apart = KroneckerSum(parts, lr=0.1, graft=False, precondition_every=2)
    for k, value in enumerate(gradients(5, (4, 9))):
        if k < 2:
            value[:, 3:6] = 0.0  # a block without any gradient yet stays where it is
        weight.grad = value.clone()
        for part, piece in zip(parts, value.split(3, dim=1), strict=True):
            part.grad = piece.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(weight.detach(), torch.cat([part.detach() for part in parts], 1))
    assert together.state[weight]["right_basis"].shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("side", "block_size", "length"),
    [(12, None, 12), (12, 12, 12), (12, 5, 4), (11, 5, 11), (8, 7, 4), (1280, 512, 320)],
)
def test_sides_are_cut_into_the_fewest_equal_parts(side, block_size, length):
    weight = torch.nn.Parameter(torch.zeros(side, 2))
    optimizer = KroneckerSum([weight], lr=0.1, block_size=block_size)
    feed(optimizer, weight, [torch.ones(side, 2)])
    assert optimizer.state[weight]["left_statistic"].shape == (side // length, length, length)


@pytest.mark.parametrize(
    "settings", [{"block_size": 0}, {"lr": -1.0}, {"betas": (1.0, 0.9)}, {"precondition_every": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        KroneckerSum([torch.nn.Parameter(torch.zeros(2, 2))], **settings)


STEPS = """
import sys
import torch
from heliostat.optim import KroneckerSum
num_threads, rows, columns, rank, path = *map(int, sys.argv[1:5]), sys.argv[5]
torch.set_num_threads(num_threads)
generator = torch.Generator().manual_seed(0)
weight = torch.nn.Parameter(torch.zeros(rows, columns))
optimizer, moves = KroneckerSum([weight], lr=1.0), []
for _ in range(2):
    before = weight.detach().clone()
    left, right = (torch.randn(*shape, generator=generator) for shape in ((rows, rank), (rank, columns)))
    weight.grad = left * torch.logspace(0, -3, rank) @ right
    optimizer.step()
    moves.append(weight.detach() - before)
torch.save(torch.stack(moves), path)
"""


# Directions without gradient are scaled up by the root of the damping: they hold rounding alone, but 100 times of it.
@pytest.mark.slow
@pytest.mark.parametrize(("shape", "rank", "bound"), [((256, 256), 256, 1e-5), ((512, 32), 32, 1e-4)])
def test_a_step_does_not_depend_on_the_number_of_threads(shape, rank, bound, tmp_path):
    for num_threads in (1, 2):
        words = map(str, (num_threads, *shape, rank, tmp_path / f"{num_threads}.pt"))
        threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        subprocess.run([sys.executable, "-c", STEPS, *words], env=os.environ | threads, check=True, timeout=200)
    one, two = (torch.load(tmp_path / f"{num_threads}.pt") for num_threads in (1, 2))
    assert ((two - one).flatten(1).norm(dim=1) < bound * one.flatten(1).norm(dim=1)).all()
