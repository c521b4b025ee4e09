"""Threads that decode a share each: same tokens, every error heard, and nothing left as they made it."""

import threading

import pytest
import torch

from heliostat.config import RolloutSection
from heliostat.rollout import DecodeLimits, NonFiniteLogits, SampleRequest, SamplingSettings, TorchEngine, build_engine
from heliostat.rollout.in_process import decode_worker, worker_count
from heliostat.rollout.in_process.decode_worker import DecodeWorker
from heliostat.rollout.in_process.worker_count import MAX_WORKERS, USUAL_MIN_FLOPS, suitable_workers
from heliostat.spans import span, timed_spans
from heliostat.threads import run_in_threads
from tests.support.nano import make_nano, make_prompts


@pytest.fixture
def torch_threads():
    """Set torch's threads in a test; they are as before after it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


def test_torchs_threads_are_shared_out_and_given_back(torch_threads):
    torch_threads(4)
    inside = []
    run_in_threads([lambda stopped: inside.append(torch.get_num_threads())] * 2)
    assert inside == [2, 2]
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("threads", "enough_for", "expected"),
    [(1, 99, 1), (2, 0, 1), (2, 1.9, 1), (2, 2.1, 2), (4, 3.1, 3), (4, 4.1, 4), (16, 99, MAX_WORKERS)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_workers_by_threads_and_operations(threads, enough_for, expected, dtype, torch_threads):
    torch_threads(threads)
    loaded = make_nano(eos_bias=0.0)
    loaded.model.to(dtype)
    weights = sum(p.numel() for name, p in loaded.model.named_parameters() if "proj" in name)
    weights += loaded.head.projection.weight.numel()
    least = USUAL_MIN_FLOPS * (2 if dtype == torch.bfloat16 else 1)
    assert suitable_workers(loaded, round(enough_for * least / (2 * weights))) == expected


def test_passes_and_draws_of_one_chosen_worker_have_one_thread_and_the_prefill_has_all(torch_threads, monkeypatch):
    torch_threads(2)
    loaded = make_nano(eos_bias=0.0)
    inside = {"prefill": set(), "decode": set(), "draw": set()}
    prefill, logits = DecodeWorker.prefill, type(loaded.head).logits

    def in_prefill(worker, admitted):
        inside["prefill"].add(torch.get_num_threads())
        return prefill(worker, admitted)

    monkeypatch.setattr(DecodeWorker, "prefill", in_prefill)
    monkeypatch.setattr(
        type(loaded.head),
        "logits",
        lambda head, hidden: (inside["decode"].add(torch.get_num_threads()), logits(head, hidden))[1],
    )
    draw = decode_worker.draw
    monkeypatch.setattr(
        decode_worker, "draw", lambda *args: (inside["draw"].add(torch.get_num_threads()), draw(*args))[1]
    )
    request = SampleRequest(make_prompts(loaded, 1), 4, SamplingSettings(), seed=3, policy_step=2)
    TorchEngine(loaded, DecodeLimits(4), num_workers=0).sample(request)
    assert inside == {"prefill": {2}, "decode": {1, 2}, "draw": {1}}  # a prefill computes the first logits
    inside["decode"].clear(), inside["draw"].clear()
    TorchEngine(loaded, DecodeLimits(4)).sample(request)
    assert inside["decode"] == inside["draw"] == {2}
    assert torch.get_num_threads() == 2


def test_a_watched_model_is_decoded_in_one_thread_unless_more_are_asked_for(torch_threads, monkeypatch):
    torch_threads(2)
    monkeypatch.setattr(worker_count, "USUAL_MIN_FLOPS", 1.0)
    loaded = make_nano()  # has a hook
    started = []
    run = DecodeWorker.run
    monkeypatch.setattr(DecodeWorker, "run", lambda worker, stopped: (started.append(1), run(worker, stopped)))
    engine = TorchEngine(loaded, DecodeLimits(4), num_workers=0)
    request = SampleRequest(make_prompts(loaded, 8), 4, SamplingSettings(), seed=3, policy_step=2)
    engine.sample(request)
    assert len(started) == 1
    engine.num_workers = 2
    engine.sample(request)
    assert len(started) == 3


def test_a_run_decodes_with_as_many_workers_as_suit_its_rows(torch_threads, monkeypatch):
    torch_threads(2)
    monkeypatch.setattr(worker_count, "USUAL_MIN_FLOPS", 1.0)
    loaded = make_nano(eos_bias=0.0)
    engine = build_engine(loaded, DecodeLimits(4), RolloutSection())
    assert isinstance(engine, TorchEngine)
    assert engine.num_workers == 0
    inside = []
    run = DecodeWorker.run

    def watched(worker, stopped):
        inside.append((len(worker.collector.request.prompts), torch.get_num_threads()))
        run(worker, stopped)

    monkeypatch.setattr(DecodeWorker, "run", watched)
    groups = engine.sample(SampleRequest(make_prompts(loaded, 8), 4, SamplingSettings(), seed=3, policy_step=2))
    assert sorted(inside) == [(4, 1), (4, 1)]
    alone = TorchEngine(loaded, DecodeLimits(4)).sample(
        SampleRequest(make_prompts(loaded, 8), 4, SamplingSettings(), seed=3, policy_step=2)
    )
    ids = [[one.token_ids for group in each for one in group.completions] for each in (groups, alone)]
    assert ids[0] == ids[1]


def test_threads_that_disturb_each_other_are_found_by_the_trial(torch_threads, monkeypatch):
    """A model that answers otherwise while another thread uses it, as one that keeps states in its modules would."""
    torch_threads(2)
    loaded = make_nano(eos_bias=0.0)
    step = DecodeWorker.step

    def disturbed(worker, state, *args):
        step(worker, state, *args)
        if threading.current_thread() is not threading.main_thread():
            state.logits[:, 0] += 1.0

    monkeypatch.setattr(DecodeWorker, "step", disturbed)
    engine = build_engine(loaded, DecodeLimits(4), RolloutSection())
    assert isinstance(engine, TorchEngine)
    assert engine.num_workers == 1


def test_a_watched_model_of_a_run_has_passes_on_one_thread(torch_threads):
    torch_threads(2)
    loaded = make_nano()  # has a hook
    engine = build_engine(loaded, DecodeLimits(4), RolloutSection())
    assert isinstance(engine, TorchEngine)
    inside = []
    loaded.head.projection.register_forward_pre_hook(lambda module, args: inside.append(torch.get_num_threads()))
    engine.sample(SampleRequest(make_prompts(loaded, 1), 4, SamplingSettings(), seed=3, policy_step=2))
    assert inside[0] == 2  # a prefill computes the first logits
    assert set(inside[1:]) == {1}


def test_sampling_in_parallel_with_training_keeps_one_thread():
    assert RolloutSection().decode_workers == 0
    assert RolloutSection(max_staleness=1).decode_workers == 1
    assert RolloutSection(max_staleness=1, num_workers=2).decode_workers == 2


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
