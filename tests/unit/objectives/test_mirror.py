"""Regression form of mirror descent: closed forms by hand, RLOO at the anchor, and its population optimum."""

import pytest
import torch
from enumerated import lambert_ratio, optimum
from ragged import build, coefficients, random_batch, run

from heliostat.types import TokenBatch

SQUARES = ["pmd-mean", "pmd-part", "pmd-baseline", "kimi-k2", "opmd"]


def test_pmd_mean_by_hand():
    """Two sequences of two and one tokens, rewards 1 and 0, tau = 1/2, log-ratios .1 + .2 and -.4."""
    objective = build("pmd-mean", tau=0.5)
    advantage = objective.advantages(torch.tensor([1.0, 0.0], dtype=torch.float64))
    logp_old = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    logp_new = torch.tensor([-0.9, -1.8, -0.9], dtype=torch.float64, requires_grad=True)
    tokens = TokenBatch(torch.tensor([0, 0, 1]), torch.tensor([2, 1]), advantage, logp_old, logp_old)
    output, gradient = run(objective, logp_new, tokens)
    # residuals A/tau - s: 1 - .3 and -1 + .4
    assert output.loss.item() == pytest.approx(0.25 * (0.7**2 + 0.6**2) / 2)
    assert coefficients(objective, logp_new, tokens).tolist() == pytest.approx([0.35, 0.35, -0.3])
    assert gradient.tolist() == pytest.approx([-0.175, -0.175, 0.15])


def small_policy(seed: int = 0, num_samples: int = 6):
    """Two-token sequences sampled from a tabular policy over 4 symbols: logits of the first and of the second token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    samples = torch.randint(0, 4, (num_samples, 2), generator=generator)
    rewards = torch.randn(num_samples, generator=generator, dtype=torch.float64)

    def token_logp():
        table = torch.log_softmax(logits, dim=1)
        first = table[0, samples[:, 0]]
        second = table[1 + samples[:, 0], samples[:, 1]]
        return torch.stack([first, second], dim=1).flatten()

    return logits, token_logp, rewards


def phase_start(objective, token_logp, rewards):
    logp_new = token_logp()
    count = len(rewards)
    tokens = TokenBatch(
        torch.repeat_interleave(torch.arange(count), 2),
        torch.full((count,), 2),
        objective.advantages(rewards),
        logp_new.detach(),
        logp_new.detach(),
    )
    return logp_new, tokens


def rloo_gradient(logits, token_logp, rewards):
    """RLOO written out: mean over i of (r_i - mean of the others) grad log pi(y_i), descent direction."""
    count = len(rewards)
    total = torch.zeros_like(logits)
    for i in range(count):
        others = (rewards.sum() - rewards[i]) / (count - 1)
        (score,) = torch.autograd.grad(token_logp().reshape(count, 2)[i].sum(), logits)
        total -= (rewards[i] - others) * score / count
    return total


@pytest.mark.parametrize("tau", [1e-3, 0.2, 50.0])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_at_the_anchor_the_gradient_is_rloo_and_tau_is_irrelevant(tau, leave_one_out):
    logits, token_logp, rewards = small_policy()
    objective = build("pmd-mean", tau=tau, leave_one_out=leave_one_out)
    logp_new, tokens = phase_start(objective, token_logp, rewards)
    loss = objective.loss(logp_new, tokens, objective.normalizer(tokens.num_tokens)).loss
    (gradient,) = torch.autograd.grad(loss, logits)
    count = len(rewards)
    expected = rloo_gradient(logits, token_logp, rewards) * (1.0 if leave_one_out else (count - 1) / count)
    assert torch.allclose(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_pmd_mean_ascends_in_kimi_k15s_direction(seed):
    """As published: the mean over j of (r_j - mean r) grad log pi(y_j) - tau/2 grad s_j^2, away from the anchor."""
    logits, token_logp, rewards = small_policy(seed)
    tau, count = 0.3, len(rewards)
    objective = build("pmd-mean", tau=tau)
    _, tokens = phase_start(objective, token_logp, rewards)
    with torch.no_grad():
        logits += torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
    logp_new = token_logp()
    (descent,) = torch.autograd.grad(objective.loss(logp_new, tokens, float(count)).loss, logits)
    totals = token_logp().reshape(count, 2).sum(1)
    log_ratio = totals - tokens.logp_old.reshape(count, 2).sum(1)
    published = ((rewards - rewards.mean()) * totals - 0.5 * tau * log_ratio.square()).mean()
    (ascent,) = torch.autograd.grad(published, logits)
    assert bool((log_ratio.abs() > 0.1).any())
    assert torch.allclose(-descent, ascent, atol=1e-12, rtol=0)


def test_kimi_k2_at_the_anchor_scales_with_two_tau():
    logits, token_logp, rewards = small_policy()
    gradients = []
    for name in ("pmd-mean", "kimi-k2"):
        objective = build(name, tau=0.05)
        logp_new, tokens = phase_start(objective, token_logp, rewards)
        gradients += torch.autograd.grad(objective.loss(logp_new, tokens, 6.0).loss, logits)
    assert torch.allclose(gradients[1], 0.1 * gradients[0], atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_kimi_k2_is_its_published_square_and_two_tau_times_pmd_mean_anywhere(seed):
    logp_new, tokens = random_batch(seed)
    tau = 0.3
    k2, k2_gradient = run(build("kimi-k2", tau=tau), logp_new, tokens)
    mean, gradient = run(build("pmd-mean", tau=tau), logp_new, tokens)
    log_ratio = tokens.sum_by_sequence(logp_new.detach() - tokens.logp_old)
    assert k2.loss.item() == pytest.approx((tokens.advantage - tau * log_ratio).square().mean().item(), abs=1e-13)
    assert k2.loss.item() == pytest.approx(2 * tau * mean.loss.item())
    assert torch.allclose(k2_gradient, 2 * tau * gradient)
    half = build("kimi-k2", tau=0.5)
    assert torch.allclose(run(half, logp_new, tokens)[1], run(build("pmd-mean", tau=0.5), logp_new, tokens)[1])


def test_small_tau_is_reinforce_and_any_tau_is_log_ratio_decay():
    logp_new, tokens = random_batch(4)
    reinforce = run(build("reinforce"), logp_new, tokens)[1]
    assert torch.allclose(run(build("pmd-mean", tau=1e-9), logp_new, tokens)[1], reinforce, atol=1e-8)
    for tau in (0.01, 1.0, 30.0):
        decay = run(build("log-ratio-decay", decay=tau), logp_new, tokens)[1]
        assert torch.allclose(run(build("pmd-mean", tau=tau), logp_new, tokens)[1], decay, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_leaving_one_out_is_a_smaller_tau(seed):
    """In a group of n, leave-one-out at tau regresses on the targets of the full mean at tau (n-1)/n."""
    tau, size = 0.4, 4
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    without_one = build("pmd-mean", tau=tau, leave_one_out=True)
    full = build("pmd-mean", tau=tau * (size - 1) / size)
    lengths = (2, 1, 3, 2)
    gradients = []
    for objective in (without_one, full):
        logp_new, tokens = random_batch(seed, lengths=lengths, advantage=objective.advantages(rewards).tolist())
        gradients.append(run(objective, logp_new, tokens)[1])
    assert torch.allclose(gradients[0], gradients[1] * size / (size - 1), atol=1e-12)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_pmd_part_at_large_tau_is_pmd_mean(leave_one_out):
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    part = build("pmd-part", tau=1e5, leave_one_out=leave_one_out).advantages(rewards)
    mean = build("pmd-mean", tau=1e5, leave_one_out=leave_one_out).advantages(rewards)
    assert torch.allclose(part, mean, atol=1e-5)


def test_pmd_part_at_small_tau_only_pushes_down():
    advantage = build("pmd-part", tau=1e-4).advantages(torch.tensor([1.0, 0.0, 0.25, 1.0], dtype=torch.float64))
    assert advantage.tolist() == pytest.approx([0.0, -1.0, -0.75, 0.0], abs=1e-3)
    assert bool((advantage[[0, 3]] >= 0).all())


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_pmd_baseline_joins_the_mean_to_the_log_partition_on_a_line(leave_one_out):
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.0, 0.0], dtype=torch.float64)

    def advantage(name, **settings):
        return build(name, tau=0.3, leave_one_out=leave_one_out, **settings).advantages(rewards)

    mean, part = advantage("pmd-mean"), advantage("pmd-part")
    assert torch.allclose(advantage("pmd-baseline", mix=0.0), mean, atol=1e-14)
    assert torch.allclose(advantage("pmd-baseline", mix=1.0), part, atol=1e-14)
    assert torch.allclose(advantage("pmd-baseline", mix=0.3), 0.7 * mean + 0.3 * part, atol=1e-14)


@pytest.mark.parametrize("baseline", ["mean", "partition"])
def test_opmd_is_the_leave_one_out_square_over_the_length(baseline):
    rewards = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    opmd = build("opmd", tau=0.05, baseline=baseline, floor=0.0)
    name = {"mean": "pmd-mean", "partition": "pmd-part"}[baseline]
    plain = build(name, tau=0.05, leave_one_out=True)
    assert torch.equal(opmd.advantages(rewards), plain.advantages(rewards))
    logp_new, tokens = random_batch(2, lengths=(3, 1, 5, 2, 4, 1, 6, 2), advantage=plain.advantages(rewards).tolist())
    by_length = tokens.num_tokens[tokens.sequence]
    assert torch.allclose(run(opmd, logp_new, tokens)[1], run(plain, logp_new, tokens)[1] / by_length, atol=1e-14)
    unnormalised = build("opmd", tau=0.05, baseline=baseline, length_normalization="none")
    assert torch.allclose(run(unnormalised, logp_new, tokens)[1], run(plain, logp_new, tokens)[1], atol=1e-14)


def test_the_constant_normalization_is_none_in_other_units():
    logp_new, tokens = random_batch(2)
    none = run(build("pmd-mean"), logp_new, tokens)[1]
    constant = build("pmd-mean", length_normalization="constant", length_constant=64.0)
    assert torch.allclose(run(constant, logp_new, tokens)[1] * 64, none, atol=1e-15)


REWARDS = torch.tensor([1.0, 0.0, 0.3, 0.9, 0.0], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.2, 0.5, 2.0])
def test_the_population_optimum_of_pmd_mean_is_the_lambert_form_and_lambda_is_measurable(tau):
    log_ratio = optimum(build("pmd-mean", tau=tau), REWARDS)
    expected, lam = lambert_ratio(REWARDS, tau)
    assert torch.allclose(log_ratio.exp(), expected, atol=1e-6)
    assert -log_ratio.mean().item() == pytest.approx(lam, abs=1e-6)  # KL(old || new)


def test_kimi_k2_has_the_same_optimum():
    expected, _ = lambert_ratio(REWARDS, 0.5)
    assert torch.allclose(optimum(build("kimi-k2", tau=0.5), REWARDS).exp(), expected, atol=1e-6)


def test_length_normalization_lets_longer_answers_rise_less():
    lengths = torch.tensor([2, 3, 5, 9, 4])
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    by_length = optimum(build("pmd-mean", tau=0.5, length_normalization="sequence"), rewards, lengths).exp()
    expected, _ = lambert_ratio(rewards, 0.5, lengths)
    assert torch.allclose(by_length, expected, atol=1e-6)
    assert by_length[3] < 0.9 * by_length[0]
    plain = optimum(build("pmd-mean", tau=0.5), rewards, lengths).exp()
    assert plain[3].item() == pytest.approx(plain[0].item(), abs=1e-6)


def test_pmd_part_on_the_population_is_the_exponential_tilt():
    tilt = torch.softmax(REWARDS / 0.5, dim=0) * len(REWARDS)
    assert torch.allclose(optimum(build("pmd-part", tau=0.5), REWARDS).exp(), tilt, atol=1e-6)


@pytest.mark.parametrize("name", SQUARES)
def test_zero_signal_groups_may_be_dropped_only_at_the_anchor(name):
    assert build(name).can_drop_zero_advantage_groups(first_update=True)
    assert not build(name).can_drop_zero_advantage_groups(first_update=False)
