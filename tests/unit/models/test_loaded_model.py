"""How long a context may be, where positions depend on how long it is; tokenizers with more ids than the model."""

import warnings

import pytest
import torch
from transformers import AutoTokenizer

from heliostat.config import ConfigError
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


@pytest.mark.parametrize(("added", "said"), [
    (["<think>"], "the tokenizer adds '<think>', which the model has no embedding for"),
    (["<a>", "<b>", "<c>", "<d>"], "the tokenizer adds '<a>', '<b>', '<c>' and 1 more, which"),
])  # fmt: skip
def test_tokens_without_an_embedding_are_named(tmp_path, added, said):
    folder = small.write_small("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    num_embeddings = load_float32(folder).model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<filler {n}>" for n in range(num_embeddings - len(tokenizer))])
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=f"{said}.*resize_token_embeddings"):
        load_float32(folder)
