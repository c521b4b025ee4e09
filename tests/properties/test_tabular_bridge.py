"""Where the sampled trainer and the exact solutions meet: the real update phase on a policy that can be enumerated.

The batch is either the whole population (a uniform policy, every answer as often as it is said) or what the real engine
sampled. Nothing is mocked: model, engine, packing, shared prompts, anchors, optimizer steps and diagnostics are those
of every run.
"""

import functools

import numpy as np
import pytest
import torch
from enumerable import ANSWERS, MAX_TOKENS, answer_log_probs, ask, enumerable_model, graded, population, reward

from heliostat import theory
from heliostat.config import ObjectiveSection
from heliostat.objectives import build_objective
from heliostat.optim import Schedule
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.mirror_metrics import mirror_means, sequence_log_ratios
from heliostat.train.update.safe_step import SafeStep
from heliostat.train.update.updater import Updater, make_batch
from heliostat.types import Batch

PROMPT = ask(2)  # "02", "11", "20" and "2" are right: a quarter of what a uniform policy says
REWARDS = [reward(PROMPT, answer) for answer in ANSWERS]


def update(loaded, group, num_updates, lr, name="pmd-mean", **settings):
    """``num_updates`` steps of the trainer's own update phase on one group, its anchor fixed throughout."""
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=lr, betas=(0.9, 0.99))
    updater = Updater(
        policy=Policy(loaded, 1.0, shared_prompt=True),
        objective=build_objective(ObjectiveSection(name=name, **settings)),
        safe_step=SafeStep(optimizer, max_grad_norm=1e9, max_bad_steps=1),
        schedule=Schedule(lr, num_updates, "linear", warmup_steps=min(10, num_updates - 1)),
        runtime=Runtime(torch.device("cpu")),
        tokens_per_microbatch=100_000,
        drop_zero_signal=False,
        anchor_from_sampler=True,
    )
    batch = make_batch(updater.objective, [group])
    updater.run(Batch(batch.groups * num_updates), num_updates, first_update=0, seed=0)
    return updater, batch


def answer_logp(loaded):
    """Log-probability of every possible answer, by the plain model."""
    return torch.stack([logp.sum() for logp in answer_log_probs(loaded, PROMPT)])


def gradient(loaded):
    return torch.cat([parameter.grad.flatten().double() for parameter in loaded.model.parameters()])


@functools.cache
def solved(name="pmd-mean", tau=0.2):
    """The uniform policy after full optimisation on its whole population: log-ratios, and the trainer's own numbers."""
    loaded = enumerable_model()
    old = answer_logp(loaded).detach()
    updater, batch = update(loaded, population(loaded, PROMPT), 200, lr=0.03, name=name, tau=tau)
    new = answer_logp(loaded).detach()
    often = Batch(batch.groups * 16)  # the same distribution; among 16 rollouts alone the gain would count as noise
    numbers = mirror_means(*sequence_log_ratios(updater.policy, often, 16, 100_000, updater.runtime), tau=tau)
    return old, new, {key: mean.value for key, mean in numbers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("tau", [0.01, 10.0])
def test_at_the_anchor_the_gradient_is_that_of_the_expected_reward(leave_one_out, tau):
    """Over the population the regression's first gradient is the policy gradient itself, for every tau."""
    loaded = enumerable_model()
    group = population(loaded, PROMPT)
    expected_reward = (answer_logp(loaded).exp() * torch.tensor(REWARDS)).sum()
    (-expected_reward).backward()
    exact = gradient(loaded)
    update(loaded, group, 1, lr=0.0, tau=tau, leave_one_out=leave_one_out)
    count = len(group.completions)
    scale = count / (count - 1) if leave_one_out else 1.0
    assert float(exact.norm()) > 0.1
    assert float((gradient(loaded) - scale * exact).norm() / exact.norm()) < 1e-5


def test_at_the_anchor_the_sampled_gradient_is_rloo():
    """Sampled by the engine; RLOO written out completion by completion on the plain model."""
    loaded = enumerable_model(seed=1, spread=1.0)
    group = graded(sampled(loaded, 24))
    count, rewards = len(group.completions), np.asarray(group.rewards)
    assert 0 < rewards.mean() < 1
    total = torch.zeros(())
    log_probs = dict(zip(ANSWERS, answer_logp(loaded), strict=True))
    for i, completion in enumerate(group.completions):
        others = np.delete(rewards, i).mean()
        total = total - (rewards[i] - others) * log_probs[completion.token_ids] / count
    total.backward()
    rloo = gradient(loaded)
    update(loaded, group, 1, lr=0.0, tau=0.3, leave_one_out=True)
    assert float((gradient(loaded) - rloo).norm() / rloo.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.5, 0.2, 0.05])
def test_full_optimisation_reaches_the_exact_step(tau):
    old, new, numbers = solved(tau=tau)
    exact = theory.pmd_mean(None, REWARDS, tau, log_probs=old)
    torch.testing.assert_close(new - old, exact.log_ratio, rtol=0, atol=2e-3)
    lam = float(exact.lam)
    assert numbers["policy/lambda_hat"] == pytest.approx(lam, rel=1e-3), "the multiplier can be read off the rollouts"
    assert numbers["policy/lambda_hat"] == pytest.approx(float((old.exp() * (old - new)).sum()), rel=1e-3), "a KL"
    assert numbers["policy/mean_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert numbers["policy/chi_square"] == pytest.approx(float(exact.chi_square), rel=5e-3)
    assert numbers["policy/solved"] == pytest.approx(1.0, abs=5e-3), "both sides of the gain identity"
    assert numbers["policy/solved_correct"] == pytest.approx(1.0, abs=5e-3), "which holds within each class"
    assert numbers["policy/solved_incorrect"] == pytest.approx(1.0, abs=5e-3)
    assert numbers["policy/ratio_correct"] == pytest.approx(float(exact.log_ratio.max().exp()), rel=5e-3)
    assert numbers["policy/ratio_incorrect"] == pytest.approx(float(exact.log_ratio.min().exp()), rel=2e-2)


def test_wrong_answers_fade_by_p_over_tau_and_not_by_one_over_tau():
    p, tau = 0.25, 0.05
    _, _, mean = solved(tau=tau)
    assert mean["policy/log_ratio_incorrect"] == pytest.approx(-p / tau, rel=0.01)
    assert mean["policy/log_ratio_correct"] == pytest.approx(-np.log(p), rel=0.01)
    assert mean["policy/log_ratio_incorrect"] > -0.3 / tau, "PMD-part would ask for -1/tau - log p"


@pytest.mark.slow
def test_the_log_partition_reaches_the_exponential_tilt():
    old, new, numbers = solved("pmd-part", 0.2)
    exact = theory.pmd_part(None, REWARDS, 0.2, log_probs=old)
    torch.testing.assert_close(new - old, exact.log_ratio, rtol=0, atol=2e-3)
    success = [float(logp[torch.tensor(REWARDS) == 1].exp().sum()) for logp in (old, new)]
    log_odds = [np.log(rate / (1 - rate)) for rate in success]
    assert log_odds[1] - log_odds[0] == pytest.approx(1 / 0.2, abs=1e-2)
    assert numbers["policy/mean_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert numbers["policy/solved"] == pytest.approx(1.0, abs=5e-3), "without a chi-square term: its multiplier is 0"


def sampled(loaded, num):
    engine = TorchEngine(loaded, DecodeLimits(MAX_TOKENS, max_rows=num))
    return engine.sample(SampleRequest([PROMPT], num, SamplingSettings(), seed=3, policy_step=0))[0]


@pytest.mark.slow
def test_rollouts_of_the_real_engine_lead_to_the_exact_step():
    """An uneven policy, 1024 sampled completions: the multiplier and both classes within what sampling leaves open."""
    loaded, tau = enumerable_model(seed=1, spread=1.0), 0.2
    old = answer_logp(loaded).detach()
    group = graded(sampled(loaded, 1024))
    updater, batch = update(loaded, group, 120, lr=0.03, tau=tau)
    numbers = {
        key: mean.value
        for key, mean in mirror_means(
            *sequence_log_ratios(updater.policy, batch, 1, 100_000, updater.runtime), tau=tau
        ).items()
    }
    exact = theory.pmd_mean(None, REWARDS, tau, log_probs=old)
    right, wrong = float(exact.log_ratio.max()), float(exact.log_ratio.min())
    error = 3 * np.std(group.rewards) / np.sqrt(len(group.rewards))  # of the sampled success rate, three sigma
    assert numbers["policy/log_ratio_incorrect"] == pytest.approx(wrong, abs=error / tau)
    assert numbers["policy/log_ratio_correct"] == pytest.approx(right, abs=3 * error)
    assert numbers["policy/lambda_hat"] == pytest.approx(float(exact.lam), rel=0.1)
    assert numbers["policy/solved"] == pytest.approx(1.0, abs=0.03)
