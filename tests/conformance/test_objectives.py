"""What every registered objective must satisfy, and agreement with other frameworks' own functions.

The fixtures in ``tests/reference/peers.json`` were written by ``record_peers.py``; where the peers are installed, their
functions are also run here and now.
"""

import json
import math

import pytest
import record_peers
import torch
from peer_cases import ADVANTAGES, LOSSES, draw
from ragged import CASES, build, case_name, coefficients, random_batch, run

from heliostat.objectives.baselines import ADVANTAGES as BASELINES
from heliostat.objectives.conformance import failures
from heliostat.types import TokenBatch

FIXTURE = json.loads(record_peers.FIXTURE.read_text())


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_every_objective_keeps_the_promises_that_own_ones_are_held_to(case):
    assert set(failures(build(case[0], **case[1])).values()) == {""}


def has_a_true_slope(case):
    """Not where a weight is detached by definition: CISPO, DPPO, and GSPO's token form under per-token weights."""
    name, settings = case
    return name not in ("cispo", "dppo") and not (name == "gspo" and "truncated_is" in settings)


@pytest.mark.parametrize("case", filter(has_a_true_slope, CASES), ids=case_name)
def test_the_coefficient_is_the_slope_of_the_loss(case):
    """Central differences of the loss's value."""
    objective = build(case[0], **case[1])
    logp_new, tokens = random_batch(200)
    normalizer = objective.normalizer(tokens.num_tokens)
    coefficient = coefficients(objective, logp_new, tokens)
    step = 1e-6
    for index in range(0, len(logp_new), 4):
        shift = torch.zeros_like(logp_new)
        shift[index] = step
        up = objective.loss(logp_new + shift, tokens, normalizer).loss.item()
        down = objective.loss(logp_new - shift, tokens, normalizer).loss.item()
        assert -(up - down) / (2 * step) * normalizer == pytest.approx(coefficient[index].item(), abs=1e-6)


def ours(case):
    """Our loss and gradient on a peer case's inputs, ragged."""
    inputs = draw(case.seed)
    mask = torch.from_numpy(inputs.mask)
    num_tokens = mask.sum(dim=1)
    tokens = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(mask)), num_tokens),
        num_tokens=num_tokens,
        advantage=torch.from_numpy(inputs.advantages),
        logp_old=torch.from_numpy(inputs.logp_old)[mask],
        logp_gen=torch.from_numpy(inputs.logp_gen)[mask],
        logp_ref=torch.from_numpy(inputs.logp_ref)[mask],
    )
    logp_new = record_peers.current(inputs, case.at_anchor).detach()[mask].requires_grad_()
    output, gradient = run(build(case.objective[0], **case.objective[1]), logp_new, tokens)
    return output.loss.item(), gradient


def agree(case, recorded):
    loss, gradient = ours(case)
    peer = torch.tensor(recorded["gradient"], dtype=torch.float64)
    assert bool((peer != 0).any())
    assert torch.allclose(gradient, peer, atol=case.tolerance, rtol=0)
    if not case.gradient_only:
        assert loss == pytest.approx(recorded["loss"], abs=case.tolerance)


def test_the_fixtures_belong_to_these_inputs_and_cover_every_case():
    assert set(FIXTURE["losses"]) == {case.key for case in LOSSES}
    assert set(FIXTURE["advantages"]) == {case.key for case in ADVANTAGES}
    for seed, checksum in FIXTURE["checksums"].items():
        assert draw(int(seed)).checksum == pytest.approx(checksum, abs=1e-9)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.key)
def test_losses_and_gradients_equal_the_peers_recorded_ones(case):
    agree(case, FIXTURE["losses"][case.key])


def group_advantages(case):
    inputs = draw(case.seed)
    rewards = torch.from_numpy(inputs.rewards)
    groups = [rewards[torch.from_numpy(inputs.group == index)] for index in sorted(set(inputs.group.tolist()))]
    return torch.cat([BASELINES[case.baseline](group) for group in groups]).tolist()


@pytest.mark.parametrize("case", ADVANTAGES, ids=lambda case: case.key)
def test_advantages_equal_the_peers_recorded_ones(case):
    assert group_advantages(case) == pytest.approx(FIXTURE["advantages"][case.key], abs=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.key)
def test_losses_and_gradients_equal_the_peers_installed_here(case):
    pytest.importorskip(case.peer.partition("-")[0])
    agree(case, record_peers.evaluate_loss(case))


@pytest.mark.peers
@pytest.mark.parametrize("case", ADVANTAGES, ids=lambda case: case.key)
def test_advantages_equal_the_peers_installed_here(case):
    pytest.importorskip("verl")
    assert group_advantages(case) == pytest.approx(record_peers.evaluate_advantages(case), abs=1e-13)


def openkimi_advantages(rewards, tau, baseline):
    """``rloo`` or ``ploo``, from the published formula, in plain Python."""
    count, peak = len(rewards), max(rewards)
    if baseline == "mean":
        return [(reward - sum(rewards) / count) * count / (count - 1) for reward in rewards]
    advantages = []
    for index, reward in enumerate(rewards):
        inner = sum(math.exp((other - peak) / tau) for j, other in enumerate(rewards) if j != index) / (count - 1)
        advantages.append(reward - (peak + tau * math.log(max(inner, 1e-8))))
    return advantages


@pytest.mark.parametrize("baseline", ["mean", "partition"])
@pytest.mark.parametrize("mode", ["sequence", "constant"])
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("num_correct", [1, 3])  # a single correct one at small tau is where the floor binds
def test_opmd_is_openkimis_published_formula(baseline, mode, tau, num_correct):
    """Padded: half tau (A/tau - s)^2 over the response length or the padded width, mean over the batch."""
    inputs = draw(5)
    mask, width = torch.from_numpy(inputs.mask), inputs.mask.shape[1]
    rewards = [1.0] * num_correct + [-1.0] * (8 - num_correct)
    mask = mask[:8]
    padded_new = torch.from_numpy(inputs.logp_new)[:8].clone().requires_grad_()
    log_ratio = ((padded_new - torch.from_numpy(inputs.logp_old)[:8]) * mask).sum(1)
    target = torch.tensor(openkimi_advantages(rewards, tau, baseline), dtype=torch.float64) / tau
    length = mask.sum(1) if mode == "sequence" else torch.full((8,), width)
    published = (0.5 * tau * (target - log_ratio) ** 2 / length).mean()
    (expected,) = torch.autograd.grad(published, padded_new)

    settings = {"length_constant": float(width)} if mode == "constant" else {}
    objective = build("opmd", tau=tau, baseline=baseline, length_normalization=mode, **settings)
    tokens = TokenBatch(
        torch.repeat_interleave(torch.arange(8), mask.sum(1)),
        mask.sum(1),
        objective.advantages(torch.tensor(rewards, dtype=torch.float64)),
        torch.from_numpy(inputs.logp_old)[:8][mask],
        torch.from_numpy(inputs.logp_gen)[:8][mask],
    )
    output, gradient = run(objective, padded_new.detach()[mask].requires_grad_(), tokens)
    assert output.loss.item() == pytest.approx(published.item(), rel=1e-12)
    assert torch.allclose(gradient, expected[mask], atol=1e-12, rtol=1e-12)
