"""One ragged batch through our objective and through every adapter: the same loss, the same gradient.

``tests/reference/adapters.json`` holds what came out of the installed frameworks (``record_adapters.py``); where one is
installed, its adapter is also run here and now.
"""

import json

import pytest
import torch
from adapter_cases import CASES, SEED, evaluate, padded
from peer_cases import draw
from ragged import build, run
from record_adapters import FIXTURE

from heliostat.types import TokenBatch
from tests.support.prime_rl_types import install

NO_PACKAGE = ("prime_rl",)
"""On no package index: run on its two dataclasses written out again, and never recorded."""

RECORD = json.loads(FIXTURE.read_text())
RECORDED = [case for case in CASES if case.key in RECORD["losses"]]


@pytest.fixture
def prime_rl(monkeypatch):
    install(monkeypatch)


def ours(case):
    batch = padded(draw(SEED))
    mask = batch["mask"]
    tokens = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(mask)), mask.sum(dim=1)),
        num_tokens=mask.sum(dim=1),
        advantage=batch["advantages"],
        logp_old=batch["logp_old"][mask],
        logp_gen=batch["logp_gen"][mask],
        logp_ref=batch["logp_ref"][mask],
    )
    output, gradient = run(
        build(case.objective, **case.settings), batch["logp_new"].detach()[mask].requires_grad_(), tokens
    )
    return output.loss.item(), gradient


def agree(case, theirs):
    loss, gradient = ours(case)
    peer = torch.tensor(theirs["gradient"], dtype=torch.float64)
    assert bool((peer != 0).any())
    assert theirs["loss"] == pytest.approx(loss, rel=1e-12)
    assert torch.allclose(peer, gradient, rtol=1e-12, atol=1e-14)


def test_the_fixture_belongs_to_this_batch_and_covers_every_case():
    assert RECORD["checksum"] == pytest.approx(draw(SEED).checksum, abs=1e-9)
    assert {case.key for case in CASES if case.peer not in NO_PACKAGE} == set(RECORD["losses"])


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.key)
def test_recorded_adapters_give_our_loss_and_gradient(case):
    agree(case, RECORD["losses"][case.key])


@pytest.mark.peers
@pytest.mark.parametrize("case", [case for case in CASES if case.peer not in NO_PACKAGE], ids=lambda case: case.key)
def test_installed_adapters_give_our_loss_and_gradient(case):
    pytest.importorskip(case.peer)
    agree(case, evaluate(case))


@pytest.mark.parametrize("case", [case for case in CASES if case.peer == "prime_rl"], ids=lambda case: case.key)
def test_prime_rl_gives_our_loss_and_gradient_over_its_own_denominator(case, prime_rl):
    """It divides by the tokens of the step where we divide by our normalizer."""
    objective = build(case.objective, **case.settings)
    lengths = padded(draw(SEED))["mask"].sum(dim=1)
    factor = objective.normalizer(lengths) / float(lengths.sum())
    if objective.length_normalization == "constant":
        factor /= objective.length_constant
    theirs = evaluate(case)
    loss, gradient = ours(case)
    assert theirs["loss"] == pytest.approx(loss * factor, rel=1e-12)
    assert torch.allclose(torch.tensor(theirs["gradient"], dtype=torch.float64), gradient * factor, rtol=1e-12)
