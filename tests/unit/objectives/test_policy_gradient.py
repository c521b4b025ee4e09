"""Detached-weight policy gradients, and the options the whole family shares."""

import dataclasses
import math

import pytest
import torch
from ragged import build, coefficients, random_batch, run

from heliostat.types import TokenBatch

FAMILY = ["reinforce", "rloo", "cispo", "dppo", "grpo", "dr-grpo", "dapo", "gspo"]


def single_tokens(logp_new, logp_old, advantage, **extra):
    """One sequence of one token per entry."""
    count = len(logp_new)
    old = torch.tensor(logp_old, dtype=torch.float64)
    tokens = TokenBatch(
        torch.arange(count),
        torch.ones(count, dtype=torch.int64),
        torch.tensor(advantage, dtype=torch.float64),
        old,
        extra.pop("logp_gen", old),
        **extra,
    )
    return torch.tensor(logp_new, dtype=torch.float64, requires_grad=True), tokens


def test_reinforce_by_hand():
    logp_new, tokens = single_tokens([-0.5, -1.0], [-0.5, -1.0], [0.5, -0.5])
    output, gradient = run(build("reinforce"), logp_new, tokens)
    assert output.loss.item() == pytest.approx((0.25 - 0.5) / 2)
    assert gradient.tolist() == [-0.25, 0.25]


def test_rloo_is_reinforce_in_other_units_of_advantage():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(build("rloo").advantages(rewards), build("reinforce").advantages(rewards) * 5 / 4)


@pytest.mark.parametrize("name", ["pmd-mean", "dr-grpo", "cispo", "dppo", "log-ratio-decay", "kl-chi2", "kimi-k2.5"])
def test_at_the_anchor_they_all_are_reinforce(name):
    logp_new, tokens = random_batch(9, drift=0.0)
    gradient = run(build(name, length_normalization="none"), logp_new, tokens)[1]
    assert torch.allclose(gradient, run(build("reinforce"), logp_new, tokens)[1], atol=1e-14)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "dppo"])
def test_clips_that_never_bind_leave_the_importance_weighted_policy_gradient(name):
    settings = {
        "dppo": {"max_increase": 1.0, "max_decrease": 1.0, "max_ratio": 1e9},
        "cispo": {"clip_low": 1.0, "clip_high": 1e9},
    }.get(name, {"clip_low": 1.0, "clip_high": 1e9})
    logp_new, tokens = random_batch(9, lengths=(1,) * 9)
    gradient = run(build(name, **settings), logp_new, tokens)[1]
    ratio = (logp_new.detach() - tokens.logp_old).exp()
    assert torch.allclose(gradient, -ratio * tokens.advantage / 9, atol=1e-14)


def test_cispo_clips_the_weight_and_never_the_gradient():
    log_ratios = [math.log(0.5), math.log(0.9), math.log(3.0)]
    for advantage in (1.0, -1.0):
        logp_new, tokens = single_tokens([-2.0 + value for value in log_ratios], [-2.0] * 3, [advantage] * 3)
        clipped = coefficients(build("cispo", clip_low=0.3, clip_high=1.5), logp_new, tokens)
        assert clipped.tolist() == pytest.approx([0.7 * advantage, 0.9 * advantage, 2.5 * advantage])
        default = coefficients(build("cispo"), logp_new, tokens)
        assert default.tolist() == pytest.approx([0.5 * advantage, 0.9 * advantage, 3.0 * advantage])
        none_left = coefficients(build("cispo", clip_low=1e-9, clip_high=1e-9), logp_new, tokens)
        assert none_left.tolist() == pytest.approx([advantage] * 3)


@pytest.mark.parametrize(
    ("p_old", "p_new", "advantage", "kept"),
    [
        (0.50, 0.75, 1.0, False),  # rose by .25 > .2 and is pushed up
        (0.50, 0.75, -1.0, True),  # rose, but is pushed down
        (0.50, 0.25, -1.0, False),  # fell by .25 and is pushed down
        (0.50, 0.25, 1.0, True),  # fell, but is pushed up
        (0.50, 0.65, 1.0, True),  # within the trust region
        (1e-3, 1e-2, 1.0, True),  # ten times as likely, yet a small move: a ratio clip would drop it
        (0.90, 0.60, -1.0, False),  # ratio .67 is mild, the move is not
        (0.50, 0.75, 0.0, True),  # moved far, but is not pushed: nothing to count
    ],
)
def test_dppo_measures_moves_in_probability(p_old, p_new, advantage, kept):
    logp_new, tokens = single_tokens([math.log(p_new)], [math.log(p_old)], [advantage])
    output, gradient = run(build("dppo"), logp_new, tokens)
    expected = p_new / p_old * advantage if kept else 0.0
    assert gradient.item() == pytest.approx(-expected)
    assert output.metrics["loss/clipped"].total == (0.0 if kept else 1.0)


def test_dppo_caps_the_weight():
    logp_new, tokens = single_tokens([math.log(0.05)], [math.log(0.001)], [1.0])
    assert coefficients(build("dppo", max_ratio=20.0), logp_new, tokens).item() == pytest.approx(20.0)


@pytest.mark.parametrize("name", FAMILY)
def test_truncated_importance_weights_multiply_each_tokens_coefficient(name):
    logp_new, tokens = random_batch(12)
    plain = coefficients(build(name), logp_new, tokens)
    weight = (tokens.logp_old - tokens.logp_gen).exp()
    corrected = coefficients(build(name, truncated_is=1.05), logp_new, tokens)
    assert bool((weight > 1.05).any())
    assert torch.allclose(corrected, weight.clamp(max=1.05) * plain, atol=1e-14)
    assert not torch.allclose(corrected, plain, atol=1e-6)
    same_sampler = dataclasses.replace(tokens, logp_gen=tokens.logp_old)
    assert torch.equal(coefficients(build(name, truncated_is=2.0), logp_new, same_sampler), plain)


def test_uncapped_importance_weights_turn_the_samplers_expectation_into_the_anchors():
    """Over an enumerated vocabulary, E_gen[weight * g] = E_old[g]."""
    generator = torch.Generator().manual_seed(0)
    logp_old, logp_gen, logp_new = torch.log_softmax(torch.randn(3, 7, generator=generator, dtype=torch.float64), dim=1)
    advantage = torch.randn(7, generator=generator, dtype=torch.float64)
    tokens = TokenBatch(torch.arange(7), torch.ones(7, dtype=torch.int64), advantage, logp_old, logp_gen)
    corrected = coefficients(build("cispo", truncated_is=1e9), logp_new.requires_grad_(), tokens)
    plain = coefficients(build("cispo"), logp_new, tokens)
    assert (logp_gen.exp() * corrected).sum().item() == pytest.approx((logp_old.exp() * plain).sum().item())


@pytest.mark.parametrize("name", FAMILY)
def test_the_reference_penalty_adds_the_k3_estimate_and_ignores_the_sampler(name):
    logp_new, tokens = random_batch(13)
    gap = tokens.logp_ref - logp_new.detach()
    without = build(name, truncated_is=1.05)
    plain, _ = run(without, logp_new, tokens)
    objective = build(name, truncated_is=1.05, kl_ref=0.3)
    penalised, _ = run(objective, logp_new, tokens)
    by_length = tokens.num_tokens[tokens.sequence] if objective.length_normalization == "sequence" else 1.0
    added = coefficients(objective, logp_new, tokens) - coefficients(without, logp_new, tokens)
    assert torch.allclose(added, 0.3 * (gap.exp() - 1) / by_length, atol=1e-14)
    normalizer = objective.normalizer(tokens.num_tokens)
    k3 = ((gap.exp() - gap - 1) / by_length).sum().item()
    assert k3 > 0
    assert penalised.loss.item() - plain.loss.item() == pytest.approx(0.3 * k3 / normalizer)


def test_k3_is_the_kl_to_the_reference_on_the_policys_own_samples():
    generator = torch.Generator().manual_seed(1)
    logp_new, logp_ref = torch.log_softmax(torch.randn(2, 7, generator=generator, dtype=torch.float64), dim=1)
    tokens = [
        TokenBatch(
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([1]),
            torch.zeros(1).double(),
            value,
            value,
            logp_ref[i, None],
        )
        for i, value in enumerate(logp_new[:, None])
    ]
    objective = build("reinforce", kl_ref=1.0)
    losses = torch.stack([objective.loss(part.logp_old, part, 1.0).loss for part in tokens])
    kl = (logp_new.exp() * (logp_new - logp_ref)).sum()
    assert (logp_new.exp() * losses).sum().item() == pytest.approx(kl.item())


@pytest.mark.parametrize("name", FAMILY)
def test_zero_signal_groups_are_always_free_without_a_reference(name):
    assert build(name).can_drop_zero_advantage_groups(first_update=False)
    assert not build(name, kl_ref=0.1).can_drop_zero_advantage_groups(first_update=True)
    assert build(name, kl_ref=0.1).needs_reference
    assert not build(name).needs_reference
