"""How long a context may be, where positions depend on how long it is."""

import warnings

import pytest
import torch

from tests.support.checkpoints import load_float32
from tests.support.model_families import small

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 40,
}


@pytest.fixture
def base(tmp_path, monkeypatch):
    own = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 40}
    monkeypatch.setitem(small.OWN, "phi3", own)
    return small.write_small("phi3", tmp_path / "base")


def test_a_context_ends_where_longer_ones_turn_every_position(base):
    with pytest.warns(UserWarning, match=r"more than 40 tokens \(LongRoPE\).* contexts are held to 40 of 128 tokens"):
        loaded = load_float32(base)
    assert loaded.context_length == 40
    ids = torch.arange(10, 51)[None]
    with torch.no_grad():
        within, whole = (loaded.model(input_ids=each, use_cache=False).logits[0, :39] for each in (ids[:, :40], ids))
        shorter = loaded.model(input_ids=ids[:, :39], use_cache=False).logits[0]
    torch.testing.assert_close(within, shorter)
    assert (within - whole).abs().max() > 0.01  # of the same tokens: one more turns them all


def test_other_scalings_do_not_depend_on_the_length(tmp_path, monkeypatch):
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    monkeypatch.setitem(small.OWN, "llama", {"rope_parameters": yarn})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_float32(small.write_small("llama", tmp_path / "base")).context_length == 128
