"""Decoding against one copy of a prompt is decoding against a copy for every row, whoever comes and goes."""

import numpy as np
import pytest

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process import shared_prompts
from heliostat.rollout.in_process.rows import Rows
from heliostat.rollout.in_process.shared import SharedRows, shares_prompts
from tests.support.nano import make_nano, make_prompts

LIMITS = [
    DecodeLimits(12),
    DecodeLimits(12, max_rows=9),  # refilled while others are under way
    DecodeLimits(12, max_rows=5, min_freed=0.0),  # and every ended row leaves at once
]


def sample(loaded, limits, shared, num_prompts=9, group_size=4, num_workers=1):
    engine = TorchEngine(loaded, limits, shared_prompt=shared, num_workers=num_workers)
    groups = engine.sample(
        SampleRequest(
            make_prompts(loaded, num_prompts), group_size, SamplingSettings(temperature=1.3), seed=7, policy_step=0
        )
    )
    return engine, [completion for group in groups for completion in group.completions]


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("shape", [{}, {"num_heads": 4, "num_kv_heads": 2}], ids=["mha", "gqa"])
def test_same_tokens_same_numbers_same_counts(shape, limits):
    loaded = make_nano(**shape)
    with_copies, expected = sample(loaded, limits, shared=False)
    together, actual = sample(loaded, limits, shared=True)
    assert (with_copies.rows_kind, together.rows_kind) == (Rows, SharedRows)
    assert [c.token_ids for c in actual] == [c.token_ids for c in expected]
    assert len({len(c.token_ids) for c in actual}) > 3, "the test needs ragged completions"
    for one, two in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=1e-5)
    assert together.take_counts() == with_copies.take_counts()


def test_prompts_whose_rows_ended_make_room(monkeypatch):
    """Dropping them at once, or never, changes nothing."""
    loaded = make_nano()
    _, expected = sample(loaded, DecodeLimits(12, min_freed=0.0), shared=True)
    for share in (0.0, 1.0):
        monkeypatch.setattr(shared_prompts, "MAX_DEAD_GROUPS", share)
        _, actual = sample(loaded, DecodeLimits(12, min_freed=0.0), shared=True)
        assert [c.token_ids for c in actual] == [c.token_ids for c in expected]


def test_a_model_that_attends_in_its_own_way_keeps_its_copies(monkeypatch):
    """Tried, not assumed: where the two ways disagree, or the class does not declare the interface, rows are copied."""
    loaded = make_nano()
    assert shares_prompts(loaded)
    monkeypatch.setattr(type(loaded.model), "_supports_attention_backend", False)
    assert not shares_prompts(loaded)
    monkeypatch.undo()
    monkeypatch.setattr(loaded.model.model.layers[0].self_attn, "scaling", 0.1)
    assert shares_prompts(loaded)  # both ways know of the scale
    attended = SharedRows.attended
    monkeypatch.setattr(SharedRows, "attended", lambda rows, layer, query: 1.1 * attended(rows, layer, query))
    assert not shares_prompts(loaded)


def test_the_models_own_attention_is_back_afterwards(nano):
    before = nano.model.config._attn_implementation
    sample(nano, DecodeLimits(4), shared=True)
    assert nano.model.config._attn_implementation == before
