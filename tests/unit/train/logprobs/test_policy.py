"""Log-probabilities do not depend on padding, on company, or on how the prompt was computed."""

import pytest
import torch

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.logprobs import policy as policy_module
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import TrainingGroup
from tests.support.nano import make_prompts


@pytest.fixture
def rows(nano):
    engine = TorchEngine(nano, DecodeLimits(9))
    groups = engine.sample(SampleRequest(make_prompts(nano, 5), 3, SamplingSettings(), seed=1, policy_step=0))
    return rows_of([TrainingGroup(group, torch.tensor([1.0, -2.0, 0.5])) for group in groups])


def score(policy, rows):
    """One number with a gradient in it, and the gradient."""
    policy.loaded.model.zero_grad()
    logp = policy.log_probs(rows)
    weight = torch.linspace(-1, 1, len(logp))
    (logp * weight).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.loaded.model.parameters() if p.grad is not None])
    return logp.detach(), gradient


def relative(one, two):
    return float((one - two).norm() / two.norm())


@pytest.mark.slow
def test_shared_prompt_and_plain_forward_agree_in_value_and_gradient(nano, rows):
    shared = score(Policy(nano, 1.0, shared_prompt=True), rows)
    plain = score(Policy(nano, 1.0, shared_prompt=False), rows)
    torch.testing.assert_close(shared[0], plain[0], atol=1e-5, rtol=0)
    assert relative(shared[1], plain[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_company_does_not_matter(nano, rows, shared):
    policy = Policy(nano, 1.0, shared)
    with torch.no_grad():
        together = policy.log_probs(rows)
        alone = torch.cat([policy.log_probs([row]) for row in rows])
        reversed_rows = rows[::-1]
        back = policy.log_probs(reversed_rows).split([row.num_tokens for row in reversed_rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, torch.cat(back[::-1]), atol=1e-5, rtol=0)


def test_hidden_states_are_those_from_which_the_head_gives_the_log_probs(nano, rows):
    policy = Policy(nano, 0.8, shared_prompt=True)
    targets = torch.tensor([token for row in rows for token in row.completion.token_ids])
    with torch.no_grad():
        logits = nano.head.logits(policy.hidden(rows)) / 0.8
        logp = logits.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
        torch.testing.assert_close(logp, policy.log_probs(rows), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_against_the_model_itself_one_sequence_at_a_time(nano, rows):
    with torch.no_grad():
        logp = Policy(nano, 0.8, shared_prompt=True).log_probs(rows).split([row.num_tokens for row in rows])
        for row, piece in zip(rows, logp, strict=True):
            ids = torch.tensor([row.prompt.context_ids + row.completion.token_ids])
            reference = torch.log_softmax(nano.model(ids).logits[0].double() / 0.8, -1)
            first = row.context_length - 1
            expected = [float(reference[first + i, t]) for i, t in enumerate(row.completion.token_ids)]
            torch.testing.assert_close(piece.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_chunked_head_equals_one_chunk(nano, rows, monkeypatch):
    policy = Policy(nano, 1.0, shared_prompt=True)
    whole = score(policy, rows)
    monkeypatch.setattr(policy_module, "MAX_LOGITS", 3 * nano.model.config.vocab_size)
    chunked = score(policy, rows)
    torch.testing.assert_close(whole[0], chunked[0], atol=1e-6, rtol=0)
    assert relative(chunked[1], whole[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_prompt_tokens_are_never_scored(nano, rows, shared):
    """Tokens that occur only in prompts get embedding gradient through attention, but no output-head gradient."""
    weight = torch.nn.Parameter(nano.head.projection.weight.detach().clone())
    nano.head.projection.weight = weight  # untie, so that the head's gradient can be seen alone
    logp = Policy(nano, 1.0, shared).log_probs(rows)
    assert len(logp) == sum(row.num_tokens for row in rows)
    logp.sum().backward()
    scored = {token for row in rows for token in row.completion.token_ids}
    # d/dW of a token's own log-probability is positive only for scored tokens: h (1 - p) against -h p elsewhere.
    with torch.no_grad():
        hidden = torch.cat(
            [
                nano.head.hidden(input_ids=torch.tensor([row.prompt.context_ids + row.completion.token_ids]))[
                    0, row.context_length - 1 : row.context_length - 1 + row.num_tokens
                ]
                for row in rows
            ]
        )
        probs = torch.softmax(nano.head.logits(hidden), -1)
        targets = torch.tensor([token for row in rows for token in row.completion.token_ids])
        expected = (torch.nn.functional.one_hot(targets, probs.shape[1]) - probs).T @ hidden
    torch.testing.assert_close(weight.grad, expected, atol=1e-3, rtol=1e-3)
    assert scored


@pytest.mark.slow
def test_one_token_completions(nano):
    engine = TorchEngine(nano, DecodeLimits(1))
    groups = engine.sample(SampleRequest(make_prompts(nano, 3), 2, SamplingSettings(), seed=1, policy_step=0))
    rows = rows_of([TrainingGroup(group, torch.zeros(2)) for group in groups])
    shared = score(Policy(nano, 1.0, shared_prompt=True), rows)
    plain = score(Policy(nano, 1.0, shared_prompt=False), rows)
    torch.testing.assert_close(shared[0], plain[0], atol=1e-5, rtol=0)
    assert relative(shared[1], plain[1]) < 1e-5
