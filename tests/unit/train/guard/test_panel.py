"""The panel's scoring against plain forward passes, one sequence at a time."""

import numpy as np
import pytest
import torch

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.guard.panel import NUM_CROSSED, Panel
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from tests.support.nano import make_prompts


@pytest.fixture
def groups(nano):
    engine = TorchEngine(nano, DecodeLimits(6))
    return engine.sample(SampleRequest(make_prompts(nano, NUM_CROSSED), 2, SamplingSettings(), seed=0, policy_step=0))


@torch.no_grad()
def distributions(nano, prompt, completion):
    """Log-probabilities of every token of the vocabulary in front of every completion token."""
    ids = torch.tensor([list(prompt.context_ids + completion.token_ids)])
    logits = nano.model(input_ids=ids).logits[0, len(prompt.context_ids) - 1 : -1]
    return torch.log_softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("shared", [True, False])
def test_entropies_are_those_of_the_whole_vocabulary(nano, groups, shared):
    rows = [Row(i, g.prompt, c, 0.0, None) for i, g in enumerate(groups[:3]) for c in g.completions]
    ours = Policy(nano, 1.0, shared).entropies(rows).double()
    expected = torch.cat([-(d.exp() * d).sum(-1) for d in (distributions(nano, r.prompt, r.completion) for r in rows)])
    assert torch.allclose(ours, expected, atol=1e-5)


def test_answers_are_scored_under_every_prompt(nano, groups):
    panel = Panel([group.prompt for group in groups], 2, 1.0, 0, 4096)
    logp = panel.crossed(Policy(nano, 1.0, True), groups)
    for i, j in ((0, 0), (0, 3), (5, 2), (7, 7)):
        answer = groups[i].completions[0]
        scored = distributions(nano, groups[j].prompt, answer)
        expected = float(scored.gather(1, torch.tensor(answer.token_ids).unsqueeze(1)).sum())
        assert logp[i, j] == pytest.approx(expected, abs=1e-3)
    assert np.isfinite(logp).all()
