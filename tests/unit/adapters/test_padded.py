"""Padding is invisible, and groups are compared among themselves only."""

import pytest
import torch
from adapter_cases import SEED, padded
from peer_cases import draw
from ragged import CASES, build, case_name

from heliostat.adapters.padded import group_advantages, padded_loss, refuse_whole_groups
from heliostat.config import ConfigError


def loss_and_gradient(case, batch, **changes):
    objective = build(case[0], **case[1])
    logp_new = changes.get("logp_new", batch["logp_new"]).detach().clone().requires_grad_()
    old, gen, ref = (changes.get(name, batch[name]) for name in ("logp_old", "logp_gen", "logp_ref"))
    normalizer = objective.normalizer(batch["mask"].sum(dim=1))
    output = padded_loss(objective, logp_new, batch["mask"], batch["advantages"], normalizer, old, gen, ref)
    (gradient,) = torch.autograd.grad(output.loss, logp_new)
    return output.loss.item(), gradient


@pytest.mark.parametrize("case", [case for case in CASES if case[0] not in ("tpo", "lpo")], ids=case_name)
def test_what_stands_under_the_padding_does_not_matter(case):
    batch = padded(draw(SEED))
    hidden = ~batch["mask"]
    rubbish = {
        name: batch[name].detach().masked_fill(hidden, torch.nan) for name in ("logp_new", "logp_old", "logp_ref")
    }
    loss, gradient = loss_and_gradient(case, batch)
    other_loss, other_gradient = loss_and_gradient(case, batch, **rubbish)
    assert other_loss == loss
    assert torch.equal(other_gradient, gradient)
    assert not gradient[hidden].any()


def test_a_token_without_a_sampler_log_prob_gets_weight_one():
    batch = padded(draw(SEED))
    case = ("grpo", {"truncated_is": 1.1})
    some = batch["mask"] & (torch.arange(batch["mask"].shape[1]) == 0)
    absent = loss_and_gradient(case, batch, logp_gen=batch["logp_gen"].masked_fill(some, torch.nan))
    equal = loss_and_gradient(case, batch, logp_gen=torch.where(some, batch["logp_old"], batch["logp_gen"]))
    assert absent[0] == equal[0] != loss_and_gradient(case, batch)[0]
    none_kept = loss_and_gradient(case, batch, logp_gen=None)
    assert none_kept[0] == loss_and_gradient(("grpo", {}), batch)[0]


def test_groups_are_compared_among_themselves():
    objective = build("pmd-mean")
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.5, 3.0])
    assert group_advantages(objective, rewards, [[0, 1], [2, 3], [4]]).tolist() == [0.5, -0.5, 0.0, 0.0, 0.0]


def test_a_reward_that_is_missing_takes_no_part():
    objective = build("pmd-mean", leave_one_out=True)
    rewards = torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0])
    assert group_advantages(objective, rewards, [[0, 1, 2], [3, 4]]).tolist() == [1.0, 0.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["tpo", "lpo"])
def test_an_objective_that_compares_completions_in_its_loss_is_refused(name):
    refuse_whole_groups(build("maxrl"), "verl")
    with pytest.raises(ConfigError, match=rf"'{name}' compares the completions .* and verl does not keep them in one"):
        refuse_whole_groups(build(name), "verl")
    with pytest.raises(ValueError, match=r"TokenBatch\.group must name the group of each"):
        loss_and_gradient((name, {}), padded(draw(SEED)))
