import numpy as np
import pytest
import torch

from heliostat.objectives.covariance import CovarianceClip
from heliostat.objectives.mirror import PmdMean
from heliostat.objectives.policy_gradient import Rloo
from heliostat.types import Batch, Completion, Group, Problem, Prompt, StopReason, TokenBatch, TrainingGroup

LENGTHS = (3, 1, 4, 2)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    completions = tuple(
        Completion(tuple(range(n)), -rng.random(n).astype(np.float32) * 3, np.zeros(n, np.float32), StopReason.EOS, "")
        for n in LENGTHS
    )
    group = Group(Prompt(Problem("p", "t", "?"), (1,)), completions)
    return Batch((TrainingGroup(group, torch.tensor([0.75, -0.25, -0.25, -0.25])),))


def tokens_of(batch, members):
    group = batch.groups[0]
    chosen = [group.group.completions[i] for i in members]
    logp = torch.cat([torch.from_numpy(c.logp_gen) for c in chosen])
    lengths = torch.tensor([len(c.token_ids) for c in chosen])
    sequence = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
    return TokenBatch(sequence, lengths, group.advantages[list(members)], logp, logp), logp


def gradient(objective, batch, members=(0, 1, 2, 3), shift=0.1):
    tokens, logp = tokens_of(batch, members)
    new = (logp + shift).requires_grad_()
    output = objective.loss(new, tokens, 4.0)
    output.loss.backward()
    return new.grad, output


@pytest.mark.parametrize("inner", [PmdMean(tau=0.5), Rloo()])
def test_without_a_threshold_it_is_the_inner_objective(inner):
    batch = make_batch()
    clip = CovarianceClip(inner=inner, mean_advantage=0.0, mean_logp=0.0, threshold=float("inf"))
    (ours, output), (theirs, expected) = gradient(clip, batch), gradient(inner, batch)
    assert torch.equal(ours, theirs)
    assert torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("inner", [PmdMean(tau=0.5), Rloo()])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_tokens_of_largest_covariance_lose_their_gradient_and_only_they(inner, share):
    batch = make_batch()
    clip = CovarianceClip.of_batch(inner, batch, share)
    tokens, logp = tokens_of(batch, range(4))
    advantage = tokens.advantage[tokens.sequence].double()
    covariance = (advantage - advantage.mean()) * (logp.double() - logp.double().mean())
    top = set(covariance.argsort(descending=True)[: int(share * 10)].tolist())
    (ours, output), (theirs, _) = gradient(clip, batch), gradient(inner, batch)
    assert set(torch.nonzero(ours == 0).flatten().tolist()) == top
    kept = [i for i in range(10) if i not in top]
    assert torch.allclose(ours[kept], theirs[kept])
    assert output.metrics["loss/covariance_clipped"].value == pytest.approx(len(top) / 10)


def test_cutting_into_microbatches_changes_nothing():
    batch = make_batch(3)
    clip = CovarianceClip.of_batch(PmdMean(tau=0.5), batch, 0.4)
    whole, _ = gradient(clip, batch)
    pieces = torch.cat([gradient(clip, batch, part)[0] for part in ((0, 1), (2,), (3,))])
    assert torch.allclose(whole, pieces)
