import math

import pytest
import torch

from heliostat.config import ConfigError, ModelSection
from heliostat.models import LoadedModel, decode, encode_problem, load_model, save_model
from heliostat.types import Problem
from tests.support.digests import tokenizer_digest, weights_digest

CPU = torch.device("cpu")


def load(seed: int = 0, **settings: object) -> LoadedModel:
    return load_model(ModelSection(settings=settings), seed, CPU)


def test_default_shape(tiny: LoadedModel):
    assert tiny.name == "tiny"
    assert 1_000_000 <= tiny.num_parameters <= 3_000_000
    assert tiny.model.dtype == torch.float32
    assert tiny.context_length == 512
    embedding, projection = tiny.model.get_input_embeddings(), tiny.model.get_output_embeddings()
    assert embedding.weight is projection.weight
    assert tiny.cache_kind == "kv"
    assert tiny.head.exact_split


def test_ids_of_ends_and_padding(tiny: LoadedModel):
    of = tiny.tokenizer.convert_tokens_to_ids
    assert tiny.eos_id == of("<|eos|>")
    assert tiny.turn_end_id == of("<|im_end|>")
    assert tiny.eos_ids == {of("<|eos|>"), of("<|im_end|>")}
    assert tiny.pad_id == of("<|pad|>")


def test_seed_decides_the_weights_and_nothing_else_does(tiny: LoadedModel):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again, other = load(seed=0), load(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights_digest(again) == weights_digest(tiny) != weights_digest(other)
    assert tokenizer_digest(again) == tokenizer_digest(other)


def test_an_untrained_model_is_near_uniform(tiny: LoadedModel):
    """At the default scale the first loss is log(vocab): no token is favoured before anything was learned."""
    ids = torch.tensor([tiny.tokenizer.encode("47 + 58 = 105")])
    with torch.no_grad():
        logp = torch.log_softmax(tiny.model(input_ids=ids).logits, dim=-1)
    entropy = -(logp.exp() * logp).sum(-1)
    assert entropy.min() > 0.95 * math.log(512)


def test_settings_shape_the_model():
    small = load(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, context_length=40)
    config = small.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (32, 2, 1)
    assert small.context_length == 40
    wide = load(init_std=0.5).model.get_input_embeddings().weight
    assert wide.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 64}, "hidden_size"),
        ({"hidden_size": "wide"}, "model.settings.hidden_size"),
        ({"hidden_size": 36, "num_heads": 4}, "even multiple"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads"),
        ({"num_layers": 0}, "num_layers = 0 must be positive"),
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        load(**settings)
    assert "\n" not in str(caught.value)


def test_bfloat16_only_when_asked_for():
    assert load_model(ModelSection(dtype="bfloat16"), 0, CPU).model.dtype == torch.bfloat16
    assert load_model(ModelSection(dtype="auto"), 0, CPU).model.dtype == torch.float32


def test_saved_model_loads_with_plain_transformers_and_answers_the_same(tiny: LoadedModel, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "final"
    save_model(tiny, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["47 + 58 =", "é∑\n\n 1", "Spell this word backward", ""]
    assert [tokenizer.encode(text) for text in texts] == [tiny.tokenizer.encode(text) for text in texts]
    messages = [{"role": "user", "content": "2 + 2"}]
    assert tokenizer.apply_chat_template(messages, return_dict=False) == tiny.tokenizer.apply_chat_template(
        messages, return_dict=False
    )
    prompt = encode_problem(tiny, Problem("p", "t", "47 + 58 ="))
    ids = torch.tensor([prompt.token_ids])
    assert torch.equal(ids, tokenizer("47 + 58 =", return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny.model(input_ids=ids).logits)
    sampled = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert decode(tiny, sampled.tolist()) == tokenizer.decode(sampled, skip_special_tokens=True)


def test_in_bfloat16_it_computes_what_it_computes_when_it_is_saved_and_loaded(tmp_path):
    """Only weights are short: rotary frequencies in bfloat16 would be those of no saved model."""
    loaded = load_model(ModelSection(dtype="bfloat16"), 0, CPU)
    save_model(loaded, tmp_path / "model")
    again = load_model(ModelSection(path=str(tmp_path / "model"), dtype="bfloat16"), 0, CPU)
    assert {b.dtype for b in loaded.model.buffers()} == {b.dtype for b in again.model.buffers()} == {torch.float32}
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, again.model(input_ids=ids).logits)
