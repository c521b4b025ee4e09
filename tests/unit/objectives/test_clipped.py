"""The clipped-ratio family: where gradients vanish, and the special cases it is made of."""

import math

import pytest
import torch
from ragged import build, random_batch, run

from heliostat.types import TokenBatch


@pytest.mark.parametrize(
    ("ratio", "advantage", "kept"),
    [
        (1.3, 1.0, False),  # already above the interval and pushed up
        (1.3, -1.0, True),  # above, but pushed back down
        (0.7, -1.0, False),  # already below and pushed down
        (0.7, 1.0, True),  # below, but pushed back up
        (1.1, 1.0, True),
        (0.9, -1.0, True),
        (1.2, 1.0, True),  # the boundary belongs to the interval
    ],
)
def test_gradients_vanish_exactly_where_the_clip_binds(ratio, advantage, kept):
    logp_old = torch.tensor([-1.0], dtype=torch.float64)
    logp_new = (logp_old + math.log(ratio) - (1e-12 if ratio == 1.2 else 0)).requires_grad_()
    tokens = TokenBatch(
        torch.zeros(1, dtype=torch.int64), torch.tensor([1]), torch.tensor([advantage]).double(), logp_old, logp_old
    )
    output, gradient = run(build("grpo"), logp_new, tokens)
    assert gradient.item() == pytest.approx(-ratio * advantage if kept else 0.0)
    clip = min(max(ratio, 0.8), 1.2)
    assert output.loss.item() == pytest.approx(-min(ratio * advantage, clip * advantage))
    assert output.metrics["loss/clipped"].total == (0.0 if kept else 1.0)


def test_dapo_lets_rising_tokens_go_further():
    logp_old = torch.tensor([-1.0], dtype=torch.float64)
    logp_new = (logp_old + math.log(1.25)).requires_grad_()
    tokens = TokenBatch(
        torch.zeros(1, dtype=torch.int64), torch.tensor([1]), torch.ones(1).double(), logp_old, logp_old
    )
    assert run(build("grpo"), logp_new, tokens)[1].item() == 0.0
    assert run(build("dapo"), logp_new, tokens)[1].item() == pytest.approx(-1.25)


def test_dapo_with_equal_lengths_and_clips_is_grpo():
    logp_new, tokens = random_batch(21, lengths=(3, 3, 3, 3))
    dapo = run(build("dapo", clip_high=0.2), logp_new, tokens)
    grpo = run(build("grpo"), logp_new, tokens)
    assert dapo[0].loss.item() == pytest.approx(grpo[0].loss.item())
    assert torch.allclose(dapo[1], grpo[1], atol=1e-15)
    uneven = random_batch(21)
    assert not torch.allclose(run(build("dapo", clip_high=0.2), *uneven)[1], run(build("grpo"), *uneven)[1], atol=1e-3)


def test_dr_grpo_divides_by_neither_spread_nor_length():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert build("dr-grpo").advantages(rewards).tolist() == [0.75, -0.25, -0.25, -0.25]
    logp_new, tokens = random_batch(22, drift=0.0)
    dr_grpo = run(build("dr-grpo", length_constant=64.0), logp_new, tokens)[1]
    assert torch.allclose(dr_grpo, run(build("reinforce"), logp_new, tokens)[1] / 64, atol=1e-16)


def test_grpo_at_the_anchor_is_standardised_reinforce_by_sequence():
    logp_new, tokens = random_batch(23, drift=0.0)
    reinforce = build("reinforce", baseline="standardized", length_normalization="sequence")
    rewards = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    assert torch.equal(build("grpo").advantages(rewards), reinforce.advantages(rewards))
    assert torch.allclose(run(build("grpo"), logp_new, tokens)[1], run(reinforce, logp_new, tokens)[1], atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_gspo_is_the_clipped_geometric_mean_ratio_of_the_sequence(seed):
    """Against the sequence form, differentiated as it stands."""
    lengths = (3, 1, 5, 2, 4, 2, 6, 2)
    logp_new, tokens = random_batch(seed, lengths=lengths)
    clip_low, clip_high = 0.05, 0.08
    output, gradient = run(build("gspo", clip_low=clip_low, clip_high=clip_high), logp_new, tokens)
    losses, free = [], logp_new.detach().clone().requires_grad_()
    for index in range(len(lengths)):
        where = tokens.sequence == index
        ratio = torch.exp((free[where] - tokens.logp_old[where]).mean())
        clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
        losses.append(-torch.minimum(ratio * tokens.advantage[index], clipped * tokens.advantage[index]))
    loss = torch.stack(losses).mean()
    (expected,) = torch.autograd.grad(loss, free)
    assert output.loss.item() == pytest.approx(loss.item())
    assert torch.allclose(gradient, expected, atol=1e-14)
    assert 0 < output.metrics["loss/clipped"].total < sum(lengths)


def test_gspo_on_single_tokens_is_grpo():
    logp_new, tokens = random_batch(24, lengths=(1,) * 9)
    gspo = run(build("gspo", clip_low=0.1, clip_high=0.1), logp_new, tokens)
    grpo = run(build("grpo", clip_low=0.1, clip_high=0.1), logp_new, tokens)
    assert torch.allclose(gspo[1], grpo[1], atol=1e-15)
    assert gspo[0].metrics == grpo[0].metrics
