"""What all prompts begin with is prefilled once, and nobody's tokens or numbers change."""

import numpy as np
import pytest

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.shared_prefix import MIN_TOKENS, num_common_tokens
from heliostat.types import Problem, Prompt
from tests.support.nano import make_nano


def prompts_after(num_common, rests):
    """Prompts of these lengths behind the same beginning; the first token behind it differs."""
    head = tuple(20 + token % 50 for token in range(num_common))
    return [
        Prompt(Problem(f"p{i}", "t", "?"), (*head, 100 + i, *(30 + (i * t) % 40 for t in range(1, rest))))
        for i, rest in enumerate(rests)
    ]


def sample(engine, prompts, group_size=3):
    groups = engine.sample(SampleRequest(prompts, group_size, SamplingSettings(temperature=1.3), seed=5, policy_step=0))
    return [completion for group in groups for completion in group.completions]


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("limits", [DecodeLimits(10), DecodeLimits(10, max_rows=7), DecodeLimits(10, 4, min_freed=0.0)])
def test_same_completions_and_every_prompt_token_counted(limits, fused):
    loaded = make_nano()
    rests = [1, 5, 2, 9, 3, 4]
    prompts = prompts_after(MIN_TOKENS + 3, rests)
    once = TorchEngine(loaded, limits, fused_layers=fused, num_workers=1)
    copies = TorchEngine(loaded, limits, shared_prompt=False)
    for one, two in zip(sample(once, prompts), sample(copies, prompts), strict=True):
        assert one.token_ids == two.token_ids
        np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=1e-5)
    counts, whole = once.take_counts(), copies.take_counts()
    assert counts.prompt_tokens == MIN_TOKENS + 3 + sum(rests)
    assert whole.prompt_tokens == sum(len(prompt.context_ids) for prompt in prompts)
    assert whole.prompt_attended - counts.prompt_attended == 5 * (MIN_TOKENS + 3) * (MIN_TOKENS + 4) // 2
    same = ("prefills", "decoded_rows", "decoded_attended", "unshared_tokens", "unshared_attended")
    assert [getattr(counts, name) for name in same] == [getattr(whole, name) for name in same]


def test_threads_share_it_too():
    loaded = make_nano()
    prompts = prompts_after(MIN_TOKENS, [2, 3, 4, 5, 6])
    engine = TorchEngine(loaded, DecodeLimits(8), num_workers=2)
    alone = TorchEngine(loaded, DecodeLimits(8))
    assert [c.token_ids for c in sample(engine, prompts)] == [c.token_ids for c in sample(alone, prompts)]
    assert engine.take_counts().prompt_tokens == alone.take_counts().prompt_tokens == MIN_TOKENS + 20


@pytest.mark.parametrize(
    ("contexts", "expected"), [([], 0), ([(1, 2, 3)], 2), ([(1, 2, 3), (1, 2, 4)], 2), ([(1, 2), (1, 2)], 1)]
)
def test_each_prompt_keeps_a_token(contexts, expected):
    assert num_common_tokens(contexts) == expected


def test_a_short_beginning_or_a_single_prompt_is_left_alone():
    loaded = make_nano()
    for prompts in (prompts_after(MIN_TOKENS - 1, [2, 3]), prompts_after(MIN_TOKENS, [4])):
        engine = TorchEngine(loaded, DecodeLimits(4))
        sample(engine, prompts)
        assert engine.take_counts().prompt_tokens == sum(len(prompt.context_ids) for prompt in prompts)
