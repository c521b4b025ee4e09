"""Kronecker factors against curvlinops', recorded by ``record_kfac.py`` and, where it is installed, computed here."""

import json

import pytest
import record_kfac
import torch

from heliostat.curvature import FactorSums, Recorder, covered_layers

FIXTURE = json.loads(record_kfac.FIXTURE.read_text())


def our_blocks(fisher_type):
    """Per layer ``E[e e'] (x) E[x x']`` over [weight, bias], in the order of flattened parameters."""
    model, inputs, labels = record_kfac.problem()
    sums = FactorSums()
    recorder = Recorder(covered_layers(model), sums)
    with recorder.recording():
        logits = model(inputs)
        if fisher_type == "empirical":
            torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        else:  # every label with weight p(y | x): rows sqrt(p) u have the expectation as their second moment
            p = torch.softmax(logits.detach(), -1)
            log_p = torch.log_softmax(logits, -1)
            for label in range(3):
                (p[:, label].sqrt() * log_p[:, label]).sum().backward(retain_graph=True)
    factors = sums.take()
    passes = 1 if fisher_type == "empirical" else 3  # each label's pass counted the inputs again
    found = {}
    for name, factor in factors.items():
        product = torch.kron(factor.outputs * passes, factor.inputs)
        out, columns = len(factor.outputs), len(factor.inputs)
        grid = torch.arange(out * columns).reshape(out, columns)
        order = torch.cat([grid[:, :-1].reshape(-1), grid[:, -1]])
        found[name] = product[order][:, order]
    return found


@pytest.mark.parametrize("fisher_type", ["empirical", "type-2"])
def test_factors_are_curvlinops_recorded_ones(fisher_type):
    for name, block in our_blocks(fisher_type).items():
        torch.testing.assert_close(block, torch.tensor(FIXTURE[fisher_type][name], dtype=torch.float64))


@pytest.mark.peers
def test_factors_are_those_of_the_curvlinops_installed_here():
    pytest.importorskip("curvlinops")
    for fisher_type, recorded in record_kfac.evaluate().items():
        for name, block in our_blocks(fisher_type).items():
            torch.testing.assert_close(block, torch.tensor(recorded[name], dtype=torch.float64))
