"""Threads that decode a share each: same tokens, every error heard, and nothing left as they made it."""

import threading

import pytest
import torch

from heliostat.rollout import DecodeLimits, NonFiniteLogits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.spans import span, timed_spans
from heliostat.threads import run_in_threads
from tests.support.nano import make_nano, make_prompts


def sample(loaded, num_workers, shared=True, **more):
    engine = TorchEngine(loaded, DecodeLimits(12, max_rows=16), shared_prompt=shared, num_workers=num_workers)
    prompts = make_prompts(loaded, 7)
    groups = engine.sample(SampleRequest([*prompts, prompts[0]], 4, SamplingSettings(), seed=3, policy_step=2, **more))
    return engine, groups


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_any_number_of_workers_samples_the_same(nano, shared):
    """A prompt that comes twice included: its random streams are counted over the whole batch."""
    alone, expected = sample(nano, 1, shared)
    counts = alone.take_counts()
    for num_workers in (2, 3, 20):
        engine, groups = sample(nano, num_workers, shared)
        assert [g.prompt for g in groups] == [g.prompt for g in expected]
        ids = [[[c.token_ids for c in g.completions] for g in each] for each in (groups, expected)]
        assert ids[0] == ids[1]
        same = engine.take_counts()
        assert (same.prefills, same.prompt_tokens, same.unshared_tokens) == (
            counts.prefills,
            counts.prompt_tokens,
            counts.unshared_tokens,
        )


def test_every_group_is_announced_once_with_its_own_index(nano):
    announced = {}
    _, groups = sample(nano, 3, on_group=lambda index, group: announced.update({index: (group, len(announced))}))
    assert {index: group for index, (group, _) in announced.items()} == dict(enumerate(groups))


def test_an_error_of_one_worker_is_raised_and_stops_the_others():
    loaded = make_nano()
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLogits):
        sample(loaded, 2)
    began = threading.Event()
    seen = []

    def fails(stopped):
        began.wait(10)
        raise KeyError("broken")

    def waits(stopped):
        began.set()
        while not stopped():
            threading.Event().wait(0.01)
        seen.append("stopped")

    with pytest.raises(KeyError, match="broken"):
        run_in_threads([fails, waits])
    assert seen == ["stopped"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollout_")]


def test_torchs_threads_are_shared_out_and_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        inside = []
        run_in_threads([lambda stopped: inside.append(torch.get_num_threads())] * 2)
        assert inside == [2, 2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_spans_of_workers_add_up_to_wall_seconds():
    both_inside = threading.Barrier(2)

    def work(stopped):
        both_inside.wait(10)
        with span("decode"):
            threading.Event().wait(0.05)

    with timed_spans() as alone, span("decode"):
        threading.Event().wait(0.05)
    with timed_spans() as seconds, span("everything"):
        run_in_threads([work, work])
    assert alone["decode"] > 0
    assert 0 < seconds["decode"] <= seconds["everything"]
