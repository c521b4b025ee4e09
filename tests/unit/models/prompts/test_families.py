"""What must hold for every architecture: loading by path, ids, the head, the cache, saving."""

import pytest
import torch
from torch import Tensor

from heliostat.models import LoadedModel, cache_kind, decode, encode_problem, encode_solution, save_model
from heliostat.types import Problem
from tests.support.checkpoints import CONTEXT_LENGTH, FAMILIES, VOCAB_SIZE, load_float32
from tests.support.digests import tokenizer_digest, weights_digest

QUESTION = "47 + 58 = é∑"
WITH_POSITIONS = [family for family in FAMILIES if family not in ("mamba", "recurrent_gemma")]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(family: str, checkpoint) -> LoadedModel:
    return load_float32(checkpoint(family))


def random_ids(num_rows: int, num_tokens: int) -> Tensor:
    return torch.randint(6, 512, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_folder_is_read_as_plain_transformers_reads_it(loaded: LoadedModel, family: str, checkpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = checkpoint(family)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = random_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, reference(input_ids=ids).logits)
    assert loaded.name == str(folder)
    assert loaded.num_parameters == sum(weight.numel() for weight in reference.parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert loaded.tokenizer.encode(QUESTION) == tokenizer.encode(QUESTION)


@pytest.mark.slow
def test_prompts_and_solutions_come_back_as_text(loaded: LoadedModel):
    prompt = encode_problem(loaded, Problem("p", "t", QUESTION))
    assert loaded.tokenizer.decode(list(prompt.token_ids)).count(QUESTION) == 1
    ids = encode_solution(loaded, prompt, "x = 105")
    assert decode(loaded, ids) == "x = 105"
    assert ids[-1] == loaded.turn_end_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert max(prompt.token_ids + ids) < VOCAB_SIZE


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_context_length_is_the_position_limit(family: str, checkpoint):
    assert load_float32(checkpoint(family)).context_length == CONTEXT_LENGTH


@pytest.mark.slow
def test_head_of_backbone_is_the_model(loaded: LoadedModel):
    """On a padded batch, at chosen positions only, and with gradients to every parameter."""
    assert loaded.head.exact_split
    ids = random_ids(3, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    hidden = loaded.head.hidden(input_ids=ids, attention_mask=mask, use_cache=False)
    torch.testing.assert_close(loaded.head.logits(hidden), expected, rtol=1e-6, atol=1e-6)
    picked = torch.tensor([3, 6])
    torch.testing.assert_close(loaded.head.logits(hidden[0, picked]), expected[0, picked], rtol=1e-5, atol=1e-6)

    weights = dict(loaded.model.named_parameters())
    whole = torch.autograd.grad(expected.square().mean(), list(weights.values()), allow_unused=True)
    split = torch.autograd.grad(loaded.head.logits(hidden).square().mean(), list(weights.values()), allow_unused=True)
    for name, a, b in zip(weights, whole, split, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_cache_kind(loaded: LoadedModel, family: str):
    assert loaded.cache_kind == cache_kind(loaded.model) == FAMILIES[family][2]


@pytest.mark.parametrize("family", [name for name, (_, _, kind) in FAMILIES.items() if kind == "kv"])
def test_a_kv_cache_may_be_replicated_and_cut(family: str, checkpoint):
    """The promise behind "kv": copies and selected rows of a prompt's cache continue like the whole sequence."""
    from transformers import DynamicCache

    loaded = load_float32(checkpoint(family))
    prompt, rest = random_ids(1, 5), random_ids(4, 2)
    cache = DynamicCache(config=loaded.model.config)
    with torch.no_grad():
        loaded.head.hidden(input_ids=prompt, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(4)
        cache.batch_select_indices(torch.tensor([0, 3]))
        hidden = loaded.head.hidden(input_ids=rest[[0, 3]], past_key_values=cache, use_cache=True)
        whole = loaded.model(input_ids=torch.cat([prompt.expand(2, -1), rest[[0, 3]]], dim=1)).logits
    torch.testing.assert_close(loaded.head.logits(hidden), whole[:, 5:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_saved_and_loaded_again_it_is_the_same(loaded: LoadedModel, tmp_path):
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(0.01)  # as if trained
    save_model(loaded, tmp_path / "final")
    again = load_float32(tmp_path / "final")
    assert weights_digest(again) == weights_digest(loaded)
    assert tokenizer_digest(again) == tokenizer_digest(loaded)
    assert (again.eos_ids, again.pad_id, again.context_length) == (loaded.eos_ids, loaded.pad_id, loaded.context_length)
    ids = random_ids(1, 6)
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, loaded.model(input_ids=ids).logits)
