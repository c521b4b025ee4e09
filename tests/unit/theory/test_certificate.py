"""The certificate must fail when the answer is wrong: every residual is shown to see its own kind of fault."""

from dataclasses import fields, replace

import pytest
import torch

from heliostat.theory.certificate import Certificate, certify
from heliostat.theory.instance import make_instance
from heliostat.theory.step import fit_targets

PROBS, REWARDS, TAU, LENGTHS = (0.1, 0.25, 0.65), (1.0, 0.4, 0.0), 0.2, (3.0, 1.0, 2.0)


def solved():
    instance = make_instance(PROBS, REWARDS, TAU, LENGTHS)
    fit = fit_targets(instance.log_probs, instance.mean_target, instance.log_lengths, torch.zeros(()).double())
    return instance, fit


def test_a_right_answer_passes():
    instance, fit = solved()
    assert float(certify(instance, fit).certificate.worst) < 1e-13


FAULTS = {
    "another ratio": (
        lambda fit: replace(fit, log_ratio=fit.log_ratio + torch.tensor([0.0, 1e-4, 0.0]).double()),
        {"stationarity", "normalisation", "lam_kl", "regulariser", "gain", "lam_length"},
    ),
    "ratios not normalised": (
        lambda fit: replace(fit, log_ratio=fit.log_ratio + 1e-4),
        {"stationarity", "normalisation", "lam_kl", "regulariser", "gain", "lam_length"},
    ),
    "another lambda": (
        lambda fit: replace(fit, log_size=fit.log_size + 1e-4),
        {"stationarity", "lam_kl", "regulariser", "gain", "lam_length"},
    ),
    "lambda of the wrong sign": (
        lambda fit: replace(fit, sign=-fit.sign),
        {"stationarity", "lam_kl", "regulariser", "gain", "lam_sign", "lam_length"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_answer_fails_where_it_should(fault):
    instance, fit = solved()
    spoil, expected = FAULTS[fault]
    certificate = certify(instance, spoil(fit)).certificate
    seen = {spec.name for spec in fields(Certificate) if float(getattr(certificate, spec.name)) > 1e-8}
    assert seen == expected


def test_every_residual_is_seen_by_some_fault():
    assert set().union(*(expected for _, expected in FAULTS.values())) == {spec.name for spec in fields(Certificate)}


def test_the_regulariser_gap_bounds_how_much_better_another_policy_could_be():
    """At any policy, not only the optimum: the gap is what certifies optimality, so it must be a true bound."""
    instance, fit = solved()
    old, lengths, tau = instance.log_probs.exp(), torch.tensor(LENGTHS).double(), TAU
    lam = fit.sign * fit.log_size.exp()

    def value(log_ratio):
        new = old * log_ratio.exp()
        penalty = (new * log_ratio).sum() + 0.5 * lam * (old * lengths * log_ratio.exp() ** 2).sum()
        return (new * torch.tensor(REWARDS)).sum() / tau - penalty

    best = value(fit.log_ratio)
    for seed in range(20):
        noise = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
        other = torch.log_softmax(instance.log_probs + fit.log_ratio + 0.3 * noise, -1) - instance.log_probs
        gap = certify(instance, replace(fit, log_ratio=other)).certificate.regulariser
        scale = fit.targets.abs().max().clamp(min=1.0)
        assert 0 < best - value(other) <= gap * scale
