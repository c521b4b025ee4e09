"""Distances to a teacher: their limits, and the sampled one against enumeration of a tiny vocabulary."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from heliostat.objectives.distillation import (
    Distillation,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sampled_reverse_kl,
)

VOCAB = 4
NAMES = ("reverse-kl", "forward-kl", "jsd")


def drawn(seed, rows=3, scale=1.5):
    return scale * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logp(logits):
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("kind", NAMES)
def test_a_policy_that_is_the_teacher_has_distance_0_and_no_gradient(kind):
    logits = drawn(0).requires_grad_()
    distance = Distillation(kind=kind, beta=0.3).of_logits(logp(logits), logp(logits.detach()))
    (gradient,) = torch.autograd.grad(distance.sum(), logits)
    assert distance.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("kind", NAMES)
def test_another_policy_has_a_positive_distance_and_a_step_brings_it_nearer(kind):
    logits, teacher = drawn(1).requires_grad_(), logp(drawn(2))
    measure = Distillation(kind=kind, beta=0.3).of_logits
    distance = measure(logp(logits), teacher)
    (gradient,) = torch.autograd.grad(distance.sum(), logits)
    assert (distance > 1e-3).all()
    assert (measure(logp(logits - 0.01 * gradient), teacher) < distance).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_the_formula_of_gkd(beta):
    """Written with torch's own divergence, as the trainers of other libraries have it."""
    policy, teacher = logp(drawn(3)), logp(drawn(4))
    mixture = (beta * teacher.exp() + (1 - beta) * policy.exp()).log()
    ours = generalized_jsd(policy, teacher, beta)
    theirs = beta * F.kl_div(mixture, teacher, reduction="none", log_target=True).sum(-1)
    theirs = theirs + (1 - beta) * F.kl_div(mixture, policy, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(
        forward_kl(policy, teacher), F.kl_div(policy, teacher, reduction="none", log_target=True).sum(-1)
    )
    assert torch.allclose(
        reverse_kl(policy, teacher), F.kl_div(teacher, policy, reduction="none", log_target=True).sum(-1)
    )


def test_the_ends_of_the_generalized_divergence():
    policy, teacher, small = logp(drawn(5)), logp(drawn(6)), 1e-6
    assert torch.allclose(generalized_jsd(policy, teacher, small) / small, forward_kl(policy, teacher), rtol=1e-4)
    assert torch.allclose(generalized_jsd(policy, teacher, 1 - small) / small, reverse_kl(policy, teacher), rtol=1e-4)


def test_the_symmetric_divergence_is_symmetric_and_bounded():
    policy, teacher = logp(drawn(7, scale=20.0)), logp(drawn(8, scale=20.0))
    distance = generalized_jsd(policy, teacher, 0.5)
    assert torch.allclose(distance, generalized_jsd(teacher, policy, 0.5))
    assert distance.max() <= math.log(2) + 1e-12


def test_a_certain_teacher_teaches_the_likelihood_of_its_token():
    policy = logp(drawn(9, rows=1))
    teacher = logp(torch.tensor([[0.0, 400.0, 0.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(forward_kl(policy, teacher), -policy[:, 1])


@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_the_sampled_distance_is_unbiased_in_value_and_gradient(drift):
    """Sum over all sequences of two tokens, weighted with the probability that the sampler draws them."""
    start, teacher = drawn(10, rows=1 + VOCAB), logp(drawn(11, rows=1 + VOCAB))  # row 0, then one for each first token
    old = logp(start)
    logits = (start + drift * drawn(12, rows=1 + VOCAB)).requires_grad_()
    new = logp(logits)
    estimate = torch.zeros((), dtype=torch.float64)
    for first, second in itertools.product(range(VOCAB), repeat=2):
        places = (torch.tensor([0, 1 + first]), torch.tensor([first, second]))
        weight = old[places].sum().exp()
        estimate = estimate + weight * sampled_reverse_kl(new[places], teacher[places], old[places]).sum()
    states = torch.cat([torch.ones(1, dtype=torch.float64), old[0].exp()])  # how often the sampler is in each
    exact = (states * reverse_kl(new, teacher)).sum()
    assert torch.allclose(estimate, exact)
    (sampled,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(exact, logits)
    assert torch.allclose(sampled, expected, atol=1e-12)
    assert expected.abs().max() > 0.01


def test_the_sampled_distance_has_the_log_ratio_to_the_teacher_as_its_advantage():
    logp_new = torch.tensor([-1.0, -0.2]).requires_grad_()
    teacher, old = torch.tensor([-0.5, -0.2]), torch.tensor([-1.5, -0.3])
    (gradient,) = torch.autograd.grad(sampled_reverse_kl(logp_new, teacher, old).sum(), logp_new)
    assert torch.allclose(gradient, torch.tensor([-0.5 * math.exp(0.5), 0.0]), atol=1e-7)


@pytest.mark.parametrize(("settings", "sentence"), [({"beta": 1.0}, "beta must lie"), ({"weight": 0.0}, "weight must")])
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Distillation(**settings)
