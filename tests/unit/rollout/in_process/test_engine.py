"""The engine's promises: it samples the model's own distribution, whoever else is in the batch."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from heliostat.config import RolloutSection
from heliostat.models import decode
from heliostat.rollout import (
    DecodeLimits,
    PlainEngine,
    SampleRequest,
    SamplingSettings,
    SamplingStopped,
    TorchEngine,
    build_engine,
)
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import StopReason, TrainingGroup
from tests.support.nano import make_nano, make_prompts


def sample(engine, prompts, group_size=4, temperature=1.0, seed=3):
    return engine.sample(
        SampleRequest(prompts, group_size, SamplingSettings(temperature=temperature), seed=seed, policy_step=0)
    )


def all_ids(groups):
    return [[completion.token_ids for completion in group.completions] for group in groups]


@pytest.mark.slow
def test_refilled_evicted_and_one_by_one_sampling_agree(nano):
    prompts = make_prompts(nano, 9)
    at_once = sample(TorchEngine(nano, DecodeLimits(12)), prompts)
    refilled = sample(TorchEngine(nano, DecodeLimits(12, max_rows=5)), prompts)
    kept = sample(TorchEngine(nano, DecodeLimits(12, min_freed=1.0)), prompts)
    alone = [sample(TorchEngine(nano, DecodeLimits(12)), [prompt])[0] for prompt in prompts]
    assert all_ids(at_once) == all_ids(refilled) == all_ids(kept) == all_ids(alone)
    assert len({len(ids) for group in all_ids(at_once) for ids in group}) > 1, "the test needs ragged completions"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TorchEngine, PlainEngine])
def test_every_group_is_announced_once_and_most_before_the_last_pass(nano, kind):
    engine = kind(nano, DecodeLimits(12, max_rows=6))
    announced = {}

    def announce(index, group):
        assert index not in announced
        announced[index] = (group, engine.counts.decode_steps)

    prompts = make_prompts(nano, 6)
    groups = engine.sample(SampleRequest(prompts, 2, SamplingSettings(), seed=3, policy_step=4, on_group=announce))
    assert [announced[index][0] for index in range(len(groups))] == groups
    assert [group.prompt for group in groups] == prompts
    assert min(steps for _, steps in announced.values()) < engine.counts.decode_steps


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_the_plain_engine_samples_the_same(nano, shared):
    prompts = make_prompts(nano, 4)
    fast = sample(TorchEngine(nano, DecodeLimits(10), shared_prompt=shared), prompts)
    plain = sample(PlainEngine(nano, DecodeLimits(10)), prompts)
    assert all_ids(fast) == all_ids(plain)
    for one, two in zip(fast, plain, strict=True):
        for a, b in zip(one.completions, two.completions, strict=True):
            np.testing.assert_allclose(a.logp_gen, b.logp_gen, atol=2e-5)


@pytest.mark.slow
def test_every_prompt_is_prefilled_once_and_finished_rows_leave(nano):
    engine = TorchEngine(nano, DecodeLimits(12, min_freed=0.0))
    prompts = make_prompts(nano, 6)
    groups = sample(engine, prompts, group_size=8)
    counts = engine.take_counts()
    assert counts.prefills == 6
    assert counts.prompt_tokens == sum(len(prompt.context_ids) for prompt in prompts)
    # The last token of a completion is drawn but never fed back.
    assert counts.decoded_rows == sum(group.num_tokens - 8 for group in groups)
    assert engine.take_counts().prefills == 0


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probabilities_are_the_trainers(nano, temperature):
    groups = sample(TorchEngine(nano, DecodeLimits(10)), make_prompts(nano, 5), temperature=temperature)
    rows = rows_of([TrainingGroup(group, torch.zeros(4)) for group in groups])
    for shared in (True, False):
        with torch.no_grad():
            logp = Policy(nano, temperature, shared).log_probs(rows)
        np.testing.assert_allclose(logp.numpy(), np.concatenate([row.completion.logp_gen for row in rows]), atol=1e-4)


@pytest.mark.slow
def test_completions_follow_the_models_distribution():
    """Every two-token completion of a seven-token vocabulary is enumerable; counts must match its probability."""
    loaded = make_nano(scale=3.0)
    allowed = torch.tensor([loaded.eos_id, 20, 30, 40, 50, 60, 70])
    bias = torch.full((loaded.model.config.vocab_size,), -torch.inf).index_fill(0, allowed, 0.0)
    restricted = loaded.head.projection.register_forward_hook(lambda module, args, output: output + bias)
    try:
        prompt = make_prompts(loaded, 2)[1]
        num = 3000
        group = sample(TorchEngine(loaded, DecodeLimits(2, max_rows=700)), [prompt] * (num // 10), group_size=10)
        observed = [completion.token_ids for one in group for completion in one.completions]
        context = list(prompt.context_ids)
        with torch.no_grad():
            first = torch.softmax(loaded.model(torch.tensor([context])).logits[0, -1].double(), 0)
            seconds = {
                int(token): torch.softmax(
                    loaded.model(torch.tensor([[*context, int(token)]])).logits[0, -1].double(), 0
                )
                for token in allowed
            }
    finally:
        restricted.remove()
    expected = {(loaded.eos_id,): float(first[loaded.eos_id])}
    for one, two in itertools.product(allowed.tolist()[1:], allowed.tolist()):
        expected[(one, two)] = float(first[one] * seconds[one][two])
    assert sum(expected.values()) == pytest.approx(1.0)
    common = [ids for ids, probability in expected.items() if probability * num >= 5]
    rare = num - sum(observed.count(ids) for ids in common)
    counts = np.array([observed.count(ids) for ids in common] + [rare])
    target = np.array([expected[ids] for ids in common] + [1 - sum(expected[ids] for ids in common)]) * num
    keep = target > 0.5
    assert stats.chisquare(counts[keep], target[keep] / target[keep].sum() * counts[keep].sum()).pvalue > 1e-3


@pytest.mark.slow
def test_repeated_prompts_get_their_own_randomness(nano):
    prompt = make_prompts(nano, 1)[0]
    one, two = sample(TorchEngine(nano, DecodeLimits(12)), [prompt, prompt], group_size=6)
    assert all_ids([one]) != all_ids([two])


@pytest.mark.slow
def test_each_stop_has_its_reason():
    loaded = make_nano(context_length=24)
    prompt = make_prompts(loaded, 4)[3]
    room = 24 - len(prompt.context_ids)
    reasons = lambda limits, temperature=3.0: {  # noqa: E731
        completion.stop_reason
        for group in sample(TorchEngine(loaded, limits), [prompt], group_size=64, temperature=temperature)
        for completion in group.completions
    }
    assert StopReason.MAX_TOKENS in reasons(DecodeLimits(2))
    assert StopReason.CONTEXT_FULL in reasons(DecodeLimits(room + 5))
    everything = sample(TorchEngine(loaded, DecodeLimits(room)), [prompt], group_size=64, temperature=3.0)[0]
    ended = [c for c in everything.completions if c.stop_reason is StopReason.EOS]
    assert all((c.token_ids[-1] in loaded.eos_ids) == (c in ended) for c in everything.completions)


@pytest.mark.slow
def test_a_stop_string_ends_the_completion_and_its_text_but_keeps_its_tokens(nano):
    prompts = make_prompts(nano, 5)
    free = sample(TorchEngine(nano, DecodeLimits(12)), prompts, group_size=8, temperature=2.0)
    target = max((c.text for group in free for c in group.completions), key=len)[2:4]
    engine = TorchEngine(nano, DecodeLimits(12, stop=(target,)))
    stopped = [c for g in sample(engine, prompts, group_size=8, temperature=2.0) for c in g.completions]
    cut = [c for c in stopped if c.stop_reason is StopReason.STOP_STRING]
    assert cut
    assert all(target not in c.text for c in stopped)
    assert all(target in decode(nano, c.token_ids) and target not in decode(nano, c.token_ids[:-1]) for c in cut)


@pytest.mark.slow
def test_a_prompt_that_fills_the_context_is_refused_by_name():
    prompts = make_prompts(make_nano(), 10)
    longest = max(prompts, key=lambda prompt: len(prompt.context_ids))
    small = make_nano(context_length=4)
    with pytest.raises(ValueError, match=longest.problem.problem_id):
        sample(TorchEngine(small, DecodeLimits(4)), [longest])


@pytest.mark.slow
def test_the_engine_is_chosen_by_the_models_memory(nano):
    assert isinstance(build_engine(nano, DecodeLimits(4), RolloutSection()), TorchEngine)


@pytest.mark.slow
def test_threads_that_a_model_cannot_use_are_mentioned(nano):
    other = dataclasses.replace(nano, cache_kind="other")
    with pytest.warns(UserWarning, match="rollout.num_workers = 2 has no effect: the memory of 'tiny'"):
        assert isinstance(build_engine(other, DecodeLimits(4), RolloutSection(num_workers=2)), PlainEngine)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TorchEngine, PlainEngine])
def test_a_stopped_engine_ends_at_the_next_token(nano, monkeypatch, kind):
    """Told from another thread; one beside it goes on."""
    engine = kind(nano, DecodeLimits(8))
    aside = engine.clone_for(nano)
    record = engine.builder.record

    def stopped_at_the_first(*args):
        record(*args)
        engine.stop()

    monkeypatch.setattr(engine.builder, "record", stopped_at_the_first)
    with pytest.raises(SamplingStopped):
        sample(engine, make_prompts(nano, 2))
    assert len(sample(aside, make_prompts(nano, 2))) == 2
