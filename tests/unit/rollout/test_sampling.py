import numpy as np
import pytest
import torch
from scipy import stats

from heliostat.rollout.sampling import Draw, NonFiniteLogits, SamplingSettings, completion_seed, draw, uniforms


def test_tokens_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(7)
    num = 20_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(num))
    drawn = draw(logits.expand(num, 7), uniform, SamplingSettings(temperature=0.7))
    expected = torch.softmax(logits.double() / 0.7, 0).numpy() * num
    counts = np.bincount(drawn.token.numpy(), minlength=7)
    assert stats.chisquare(counts, expected / expected.sum() * num).pvalue > 1e-3


def test_log_probabilities_and_entropy_are_those_of_the_tempered_distribution():
    torch.manual_seed(1)
    logits = torch.randn(5, 11)
    drawn = draw(logits, torch.rand(5), SamplingSettings(temperature=1.7))
    policy = torch.distributions.Categorical(logits=logits / 1.7)
    torch.testing.assert_close(drawn.logp, policy.log_prob(drawn.token))
    torch.testing.assert_close(drawn.entropy, policy.entropy())


def test_impossible_tokens_are_never_drawn_even_at_the_edges():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 1e-16):
        assert draw(logits, torch.tensor([uniform]), SamplingSettings()).token.item() in (1, 3)


def test_greedy_takes_the_argmax_and_reports_the_policy_itself():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    drawn = draw(logits, torch.zeros(1), SamplingSettings(temperature=0))
    assert drawn.token.item() == 1
    torch.testing.assert_close(drawn.logp, torch.log_softmax(logits, -1)[:, 1])


def test_top_k_and_top_p_keep_the_smallest_sufficient_set():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    uniform = torch.linspace(0, 1 - 1e-6, 200)
    rows = logits.expand(200, 4)
    assert set(draw(rows, uniform, SamplingSettings(top_k=2)).token.tolist()) == {0, 1}
    assert set(draw(rows, uniform, SamplingSettings(top_p=0.8)).token.tolist()) == {0, 1}
    assert set(draw(rows, uniform, SamplingSettings(top_p=0.81)).token.tolist()) == {0, 1, 2}
    assert set(draw(rows, uniform, SamplingSettings(top_p=0.01)).token.tolist()) == {0}


def test_a_stream_is_a_prefix_of_any_longer_one_and_seeds_differ():
    np.testing.assert_array_equal(uniforms(5, 3), uniforms(5, 10)[:3])
    assert completion_seed(0, "a", 1) != completion_seed(0, "a", 2) != completion_seed(1, "a", 2)
    assert completion_seed(0, "a", 1) == completion_seed(0, "a", 1)
    assert completion_seed(0, "a", 11) != completion_seed(0, "a1", 1)


def test_broken_weights_are_said_to_be_broken():
    with pytest.raises(NonFiniteLogits, match="not finite"):
        draw(torch.tensor([[0.0, float("nan")]]), torch.tensor([0.5]), SamplingSettings())


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_nonsense_settings_are_refused(bad):
    with pytest.raises(ValueError, match="sampling needs"):
        SamplingSettings(**bad)


@pytest.mark.parametrize("vocab", [1, 5, 255, 256, 257, 512, 1000])
def test_blocks_of_tokens_give_the_token_of_one_cumulative_sum(vocab):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, vocab, generator=generator)
    logits[:, 1::3] = -torch.inf  # never drawn, and no part of the entropy
    uniform = torch.rand(500, dtype=torch.float64, generator=generator)
    uniform[:2] = torch.tensor([0.0, 1.0 - 2**-53])
    drawn = draw(logits, uniform, SamplingSettings())
    probs = torch.softmax(logits.double(), dim=-1)
    cdf = probs.cumsum(dim=-1)
    # The smallest token whose cumulative probability is above the number, to rounding at its two ends.
    end = cdf.gather(1, drawn.token[:, None])[:, 0]
    mass = probs.gather(1, drawn.token[:, None])[:, 0]
    assert bool(((uniform < end + 1e-6) & (uniform >= end - mass - 1e-6) & (mass > 0)).all())
    torch.testing.assert_close(drawn.entropy.double(), torch.special.entr(probs).sum(dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn.logp.double(), mass.log(), atol=1e-5, rtol=1e-5)


def test_numbers_on_the_host_are_exact():
    drawn = Draw(torch.tensor([0, 151_935, 2**24 + 1]), torch.tensor([-0.1, -1e-7, -torch.inf]), torch.rand(3))
    assert drawn.on_host() == (drawn.token.tolist(), drawn.logp.tolist(), drawn.entropy.tolist())
    assert all(type(token) is int for token in drawn.on_host()[0])
