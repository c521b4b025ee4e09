"""Several turns: token-exact, with no token computed twice, and the same whoever else is in the batch."""

import itertools

import numpy as np
import pytest
import torch

from heliostat.models.checks.reference_forward import reference_log_probs
from heliostat.rollout import DecodeLimits, PlainEngine, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.rows import PaddedRows, Rows
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.types import StopReason
from tests.support.nano import make_nano, make_prompts

LIMITS = DecodeLimits(90, min_freed=0.3)
NUM_TURNS = 5

WAYS = {
    "fused": lambda loaded, limits: TorchEngine(loaded, limits),
    "shared": lambda loaded, limits: TorchEngine(loaded, limits, fused_layers=False),
    "copies": lambda loaded, limits: TorchEngine(loaded, limits, shared_prompt=False),
    "padded": lambda loaded, limits: TorchEngine(loaded, limits, shared_prompt=False, copies=PaddedRows),
    "two threads": lambda loaded, limits: TorchEngine(loaded, limits, num_workers=2),
    "plain": PlainEngine,
    "no memory": lambda loaded, limits: PlainEngine(loaded, limits, has_memory=False),
}


def dialogues_for(prompts, group_size, num_replies=NUM_TURNS - 1, max_turn_tokens=9):
    """Replies that depend on problem and member, of one to five tokens."""
    return [
        [
            Scripted(
                script(range(20 + int(prompt.problem.problem_id[1:]), 60), num_replies, 1 + member % 4), max_turn_tokens
            )
            for member in range(group_size)
        ]
        for prompt in prompts
    ]


def sample(engine, prompts, group_size=3, temperature=1.0, dialogues=None):
    settings = SamplingSettings(temperature=temperature)
    dialogues = dialogues or dialogues_for(prompts, group_size)
    request = SampleRequest(prompts, group_size, settings, seed=3, policy_step=0, dialogues=dialogues)
    return engine.sample(request)


def outlines(groups):
    return [[(one.token_ids, one.spans, one.stop_reason) for one in group.completions] for group in groups]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_five_turns_in_a_batch_equal_the_same_alone(way, temperature):
    loaded = make_nano()
    prompts = make_prompts(loaded, 5)
    together = sample(WAYS[way](loaded, LIMITS), prompts, temperature=temperature)
    alone = [sample(WAYS[way](loaded, LIMITS), [prompt], temperature=temperature)[0] for prompt in prompts]
    few_rows = sample(WAYS[way](loaded, DecodeLimits(90, max_rows=4, min_freed=1.0)), prompts, temperature=temperature)
    assert outlines(together) == outlines(alone) == outlines(few_rows)
    numbers = {len(one.turns) for group in together for one in group.completions}
    assert NUM_TURNS in numbers, "the test needs episodes that reach their last turn"
    assert temperature == 0 or len(numbers) > 1, "and some that are cut"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_log_probs_of_sampled_tokens_are_those_of_the_whole_text(way):
    loaded = make_nano()
    for group in sample(WAYS[way](loaded, LIMITS), make_prompts(loaded, 5)):
        for one in group.completions:
            truth = reference_log_probs(loaded, group.prompt.context_ids, one.token_ids, 1.0).numpy()
            sampled = [place for start, end in one.spans for place in range(start, end)]
            np.testing.assert_allclose(one.logp_gen, truth[sampled], atol=2e-4)
            assert one.sampled_ids == tuple(one.token_ids[place] for place in sampled)


@pytest.mark.slow
def test_all_ways_say_the_same():
    loaded = make_nano()
    prompts = make_prompts(loaded, 5)
    said = [outlines(sample(build(loaded, LIMITS), prompts)) for build in WAYS.values()]
    assert all(each == said[0] for each in said)


def test_replies_stand_between_turns_and_are_not_sampled(nano):
    prompts = make_prompts(nano, 3)
    scripts = [[[(7, 8, 9), (11,), (12, 13)] for _ in range(2)] for _ in prompts]
    dialogues = [[Scripted(iter(replies), 6) for replies in group] for group in scripts]
    groups = sample(TorchEngine(nano, LIMITS), prompts, 2, dialogues=dialogues)
    for one in itertools.chain.from_iterable(group.completions for group in groups):
        gaps = [one.token_ids[a.end : b.start] for a, b in itertools.pairwise(one.turns)]
        assert gaps == scripts[0][0][: len(gaps)]
        assert one.turns[0].start == 0
        assert one.turns[-1].end == len(one.token_ids)
        for turn in one.turns[:-1]:
            assert one.token_ids[turn.end - 1] in nano.eos_ids
            assert 1 <= turn.num_tokens <= 6
    assert all(dialogue.has_ended for group in dialogues for dialogue in group)


def test_a_turn_that_is_cut_ends_the_episode_and_its_action_is_not_run():
    loaded = make_nano(eos_bias=-50.0)
    dialogue = Scripted(iter([(7,)]), 5)
    (group,) = sample(TorchEngine(loaded, LIMITS), make_prompts(loaded, 1), 1, dialogues=[[dialogue]])
    (one,) = group.completions
    assert one.stop_reason is StopReason.TURN_TRUNCATED
    assert one.stop_reason.truncated
    assert len(one.token_ids) == 5
    assert next(dialogue.replies) == (7,), "the environment was not asked"
    assert dialogue.has_ended


def test_an_episode_ends_where_a_reply_leaves_no_room(nano):
    engine = TorchEngine(nano, DecodeLimits(20))
    (group,) = sample(engine, make_prompts(nano, 1), 4, dialogues=[[Scripted(iter([(7,) * 19]), 9) for _ in range(4)]])
    answered = [one for one in group.completions if one.token_ids[-1] in nano.eos_ids]
    assert answered
    for one in answered:
        assert one.stop_reason is StopReason.MAX_TOKENS
        assert one.turns[-1].end == len(one.token_ids), "the reply was not appended"


def test_no_token_is_computed_twice(nano):
    """Every id but the last of each completion runs through the model exactly once, prompts once a group."""
    engine = TorchEngine(nano, DecodeLimits(90, min_freed=1e-9))
    prompts = make_prompts(nano, 5)
    groups = sample(engine, prompts)
    counts = engine.take_counts()
    completions = [one for group in groups for one in group.completions]
    replies = [b.start - a.end for one in completions for a, b in itertools.pairwise(one.turns)]
    assert replies
    assert counts.prefills == len(prompts)
    assert counts.prompt_tokens == sum(len(prompt.context_ids) for prompt in prompts)
    assert counts.replies == len(replies)
    assert counts.reply_tokens == sum(replies) + len(replies), "each with the last token sampled before it"
    fed = sum(len(one.token_ids) - 1 for one in completions)
    assert counts.decoded_rows + counts.reply_tokens == fed
    attended = sum(
        sum(range(len(group.prompt.context_ids) + 1, len(group.prompt.context_ids) + len(one.token_ids)))
        for group in groups
        for one in group.completions
    )
    assert counts.decoded_attended + counts.reply_attended == attended


@pytest.mark.slow
def test_one_turn_that_is_never_answered_is_a_completion_of_one_turn(nano):
    """The same streams and ids, whether or not somebody listens."""
    prompts = make_prompts(nano, 5)
    engine = TorchEngine(nano, DecodeLimits(12))
    plain = engine.sample(SampleRequest(prompts, 3, SamplingSettings(), seed=3, policy_step=0))
    heard = sample(engine, prompts, dialogues=dialogues_for(prompts, 3, num_replies=0, max_turn_tokens=12))
    assert [[one.token_ids for one in group.completions] for group in plain] == [
        [one.token_ids for one in group.completions] for group in heard
    ]


def test_the_end_of_every_group_is_announced_once(nano):
    prompts = make_prompts(nano, 4)
    announced = []
    request = SampleRequest(
        prompts,
        2,
        SamplingSettings(),
        seed=3,
        policy_step=0,
        on_group=lambda index, group: announced.append(index),
        dialogues=dialogues_for(prompts, 2),
    )
    TorchEngine(nano, LIMITS).sample(request)
    assert sorted(announced) == [0, 1, 2, 3]


def test_rows_of_one_prompt_come_back_in_order():
    """Rows that were parked in pieces are sorted by prompt again."""
    loaded = make_nano()
    engine = TorchEngine(loaded, DecodeLimits(90, min_freed=0.1))
    assert engine.rows_kind is not Rows
    prompts = make_prompts(loaded, 7)
    torch.manual_seed(0)
    assert outlines(sample(engine, prompts, 5)) == outlines(sample(PlainEngine(loaded, LIMITS), prompts, 5))
