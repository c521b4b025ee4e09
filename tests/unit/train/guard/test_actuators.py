import dataclasses

import numpy as np
import pytest
import torch

from heliostat.objectives.mirror import PmdMean
from heliostat.train.update.updater import make_batch
from heliostat.types import Completion, Group, Problem, Prompt, StopReason, Verdict

COUNTS = (8, 5, 4, 3)


def population(logits):
    """Every action as often as it is likely (in 20ths), all paid the same."""
    logp = torch.log_softmax(logits, dim=0).detach().numpy()
    completions = tuple(
        Completion((a,), logp[a : a + 1].astype(np.float32), np.zeros(1, np.float32), StopReason.EOS, str(a))
        for a, count in enumerate(COUNTS)
        for _ in range(count)
    )
    return Group(Prompt(Problem("p", "t", "?"), (1,)), completions, tuple(Verdict(1.0, True) for _ in completions))


def test_the_entropy_bonus_is_the_gradient_of_entropy():
    logits = torch.log(torch.tensor(COUNTS, dtype=torch.float64)).requires_grad_()
    group, bonus = population(logits), 0.3
    (training,) = make_batch(PmdMean(tau=0.5), [group], bonus).groups
    logp = torch.log_softmax(logits, dim=0)
    actions = torch.tensor([c.token_ids[0] for c in group.completions])
    surrogate = (training.advantages.double() * logp[actions]).mean()
    (ours,) = torch.autograd.grad(surrogate, logits)
    logp = torch.log_softmax(logits, dim=0)
    (entropy,) = torch.autograd.grad(-(logp.exp() * logp).sum(), logits)
    assert torch.allclose(ours, bonus * entropy, atol=1e-7)
    assert ours.abs().max() > 1e-3


def test_without_a_bonus_equal_rewards_push_nowhere():
    logits = torch.log(torch.tensor(COUNTS, dtype=torch.float64))
    (training,) = make_batch(PmdMean(tau=0.5), [population(logits)]).groups
    assert not training.has_signal


def test_rewards_are_reported_as_they_were():
    logits = torch.log(torch.tensor(COUNTS, dtype=torch.float64))
    (training,) = make_batch(PmdMean(tau=0.5), [population(logits)], 0.3).groups
    assert set(training.group.rewards) == {1.0}
    assert float(training.advantages.sum()) == pytest.approx(0.0, abs=1e-5)


def test_the_variety_bonus_pays_for_right_answers_only():
    logits = torch.log(torch.tensor(COUNTS, dtype=torch.float64))
    group = population(logits)
    wrong = tuple(Verdict(0.0, False) if c.token_ids[0] == 3 else v for c, v in
                  zip(group.completions, group.verdicts, strict=True))  # fmt: skip
    group = dataclasses.replace(group, verdicts=wrong)
    objective = PmdMean(tau=0.5)
    plain, entropy, variety = (
        make_batch(objective, [group], *bonus).groups[0].advantages for bonus in ((), (0.3,), (0.0, 0.3))
    )
    surprise = torch.tensor([-float(c.logp_gen.sum()) for c in group.completions])
    right = torch.tensor([v.success for v in group.verdicts])
    gained = variety - plain
    assert torch.allclose(gained - gained[~right][0], 0.3 * surprise * right, atol=1e-6)
    assert torch.allclose((entropy - variety)[right] - (entropy - variety)[right][0], torch.zeros(int(right.sum())),
                          atol=1e-6)  # fmt: skip
    assert not torch.allclose(entropy, variety)
