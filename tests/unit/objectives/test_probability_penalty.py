import dataclasses
import math

import pytest
import torch
from ragged import build, coefficients, random_batch, run

from heliostat.config import ConfigError
from heliostat.types import TokenBatch


def one_token(new, old, advantage):
    """A sequence of one token whose probability went from ``old`` to ``new``."""
    logp_new = torch.tensor([math.log(new)], dtype=torch.float64, requires_grad=True)
    logp_old = torch.tensor([math.log(old)], dtype=torch.float64)
    tokens = TokenBatch(
        sequence=torch.zeros(1, dtype=torch.int64),
        num_tokens=torch.ones(1, dtype=torch.int64),
        advantage=torch.tensor([advantage], dtype=torch.float64),
        logp_old=logp_old,
        logp_gen=logp_old,
    )
    return logp_new, tokens


def published(logp_new, tokens, delta):
    """Equation 8 by token: r A - |A| / (2 delta) mu (r - 1)^2, and the weight of table 1 on r A."""
    new, old, advantage = logp_new.detach().exp(), tokens.logp_old.exp(), tokens.advantage[tokens.sequence]
    ratio = new / old
    gain = ratio * advantage - advantage.abs() / (2 * delta) * old * (ratio - 1).square()
    weight = 1 - torch.sign(advantage * (ratio - 1)) * (new - old).abs() / delta
    return gain, weight, weight * ratio * advantage


@pytest.mark.parametrize("delta", [0.05, 0.2, 12.5])
def test_loss_and_gradient_are_the_papers(delta):
    logp_new, tokens = random_batch(3, drift=0.6)
    gain, weight, coefficient = published(logp_new, tokens, delta)
    output, _ = run(build("drpo", delta=delta), logp_new, tokens)
    assert output.loss.item() == pytest.approx(-gain.sum().item() / 8, rel=1e-12)
    assert torch.allclose(coefficients(build("drpo", delta=delta), logp_new, tokens), coefficient, atol=1e-12)
    assert bool(((weight >= 1 - 1 / delta) & (weight <= 1 + 1 / delta)).all())


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_at_the_boundary_there_is_no_gradient_and_beyond_it_the_opposite_one(advantage):
    old, sign = 0.5, math.copysign(1, advantage)
    for moved, direction in ((0.1, 1), (0.2, 0), (0.3, -1)):
        found = coefficients(build("drpo", delta=0.2), *one_token(old + sign * moved, old, advantage)).item()
        assert found == pytest.approx(0, abs=1e-12) if direction == 0 else found * sign * direction > 1e-3


def test_dppo_masks_exactly_what_it_turns_around():
    logp_new, tokens = random_batch(3, drift=0.6)
    tokens = dataclasses.replace(tokens, advantage=torch.ones(8).double())
    drpo = coefficients(build("drpo", delta=0.1), logp_new, tokens)
    dppo = coefficients(
        build("dppo", max_increase=0.1, max_decrease=0.1, length_normalization="none"), logp_new, tokens
    )
    assert torch.equal(drpo < 0, dppo == 0)
    assert bool((drpo < 0).any())


def test_a_large_delta_is_the_importance_weighted_policy_gradient():
    logp_new, tokens = random_batch(3, drift=0.6)
    ratio = (logp_new.detach() - tokens.logp_old).exp()
    found = coefficients(build("drpo", delta=1e9), logp_new, tokens)
    assert torch.allclose(found, ratio * tokens.advantage[tokens.sequence], atol=1e-8)


def test_at_the_anchor_it_is_reinforce_for_every_delta():
    logp_new, tokens = random_batch(0)
    tokens = dataclasses.replace(tokens, logp_old=logp_new.detach())
    expected = coefficients(build("reinforce"), logp_new, tokens)
    for delta in (1e-3, 12.5):
        assert torch.allclose(coefficients(build("drpo", delta=delta), logp_new, tokens), expected, atol=1e-14)


def test_a_rare_token_may_multiply_its_probability():
    """The weight follows from the change of probability: a hundredfold of 1e-4 is 1% and hardly counts."""
    rare = coefficients(build("drpo", delta=0.2), *one_token(1e-2, 1e-4, 1.0)).item()
    assert rare == pytest.approx(100 * (1 - 0.0099 / 0.2))


def test_delta_must_be_positive():
    with pytest.raises(ConfigError, match="delta must be a positive finite number"):
        build("drpo", delta=0.0)
