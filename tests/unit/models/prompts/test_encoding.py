import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.config import ConfigError, ModelSection
from heliostat.models import LoadedModel, decode, encode_problem, encode_solution, load_model
from heliostat.models.loading.tiny import SPECIAL_TOKENS
from heliostat.types import Problem, Prompt
from tests.support.checkpoints import chat_tokenizer, load_float32, plain_tokenizer, write_checkpoint

TEXT = st.text(max_size=60).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
QUESTION = "47 + 58 ="


def problem(prompt: str | tuple[dict[str, str], ...] = QUESTION) -> Problem:
    return Problem("sums-7", "sums", prompt)


def shown(loaded: LoadedModel, prompt: Prompt) -> str:
    return loaded.tokenizer.decode(list(prompt.token_ids))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_float32(write_checkpoint(tmp_path_factory.mktemp("chat"), "llama"))


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_float32(write_checkpoint(tmp_path_factory.mktemp("base"), "gpt2", plain_tokenizer()))


@pytest.mark.parametrize("chat", ["auto", False])
def test_tiny_model_takes_plain_text_between_bos_and_sep(tiny: LoadedModel, chat):
    assert shown(tiny, encode_problem(tiny, problem(), chat)) == "<|bos|>47 + 58 =<|sep|>"


def test_auto_uses_a_chat_models_template_and_a_base_models_plain_form(chat_model, base_model):
    rendered = "<|bos|><|im_start|>user\n47 + 58 =<|im_end|>\n<|im_start|>assistant\n"
    assert shown(chat_model, encode_problem(chat_model, problem())) == rendered
    assert shown(base_model, encode_problem(base_model, problem())) == QUESTION
    assert encode_problem(chat_model, problem(), False).token_ids == tuple(chat_model.tokenizer.encode(QUESTION))


def test_messages_always_use_the_template(tiny: LoadedModel):
    messages = (
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    )
    expected = (
        "<|bos|><|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
    )
    for chat in ("auto", True, False):
        assert shown(tiny, encode_problem(tiny, problem(messages), chat)) == expected


def test_a_last_message_of_the_assistant_is_continued(tiny: LoadedModel):
    messages = ({"role": "user", "content": "1"}, {"role": "assistant", "content": "The answer is"})
    assert shown(tiny, encode_problem(tiny, problem(messages))).endswith("<|im_start|>assistant\nThe answer is")


def test_system_message_comes_first_unless_the_row_brings_its_own(tiny: LoadedModel):
    own = ({"role": "system", "content": "own"}, {"role": "user", "content": "1"})
    with_system = shown(tiny, encode_problem(tiny, problem(own[1:]), system="recipe"))
    assert with_system.startswith("<|bos|><|im_start|>system\nrecipe<|im_end|>\n<|im_start|>user")
    assert "recipe" not in shown(tiny, encode_problem(tiny, problem(own), system="recipe"))
    assert "recipe" in shown(tiny, encode_problem(tiny, problem(), chat=True, system="recipe"))


def test_a_system_message_without_chat_is_refused_not_ignored(tiny: LoadedModel):
    with pytest.raises(ConfigError, match=r"model\.system needs chat prompts"):
        encode_problem(tiny, problem(), system="be brief")


@pytest.mark.parametrize("prompt", [QUESTION, ({"role": "user", "content": "1"},)])
def test_chat_without_a_template_is_refused(base_model: LoadedModel, prompt):
    with pytest.raises(ConfigError, match=r"'sums-7'.*no chat template.*model.chat = false"):
        encode_problem(base_model, problem(prompt), chat=True)


def test_prompt_may_fill_the_context_up_to_one_token(tmp_path):
    loaded = load_model(ModelSection(settings={"context_length": 16}), 0, torch.device("cpu"))
    assert len(encode_problem(loaded, problem("7" * 13)).token_ids) == 15
    with pytest.raises(ValueError, match=r"'sums-7'.* 16 tokens.*'tiny' holds 16"):
        encode_problem(loaded, problem("7" * 14))


def test_empty_prompt_is_refused_where_nothing_frames_it(tiny: LoadedModel, base_model: LoadedModel):
    assert len(encode_problem(tiny, problem("")).token_ids) == 2
    with pytest.raises(ValueError, match=r"'sums-7'.*empty"):
        encode_problem(base_model, problem(""))


def test_what_a_template_refuses_is_reported_with_the_problem(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    loaded = load_float32(write_checkpoint(tmp_path, "llama", tokenizer))
    assert loaded.turn_end_id == loaded.eos_id
    with pytest.raises(ValueError, match=r"'sums-7'.*roles must alternate"):
        encode_problem(loaded, problem())


def test_an_end_of_sequence_that_a_tokenizer_adds_to_every_text_is_dropped(tmp_path):
    from tokenizers import processors

    tokenizer = plain_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", tokenizer.eos_token_id)]
    )
    loaded = load_float32(write_checkpoint(tmp_path, "gpt2", tokenizer))
    assert loaded.tokenizer.encode("1")[-1] == loaded.eos_id
    assert shown(loaded, encode_problem(loaded, problem("1"))) == "1"


def test_solutions_end_as_the_prompt_form_does(tiny: LoadedModel):
    plain = encode_problem(tiny, problem())
    chat = encode_problem(tiny, problem(), chat=True)
    assert encode_solution(tiny, plain, "105")[-1] == tiny.tokenizer.convert_tokens_to_ids("<|eos|>")
    assert encode_solution(tiny, chat, "105")[-1] == tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_chat_solution_spells_the_turn_the_template_would_have_written(chat_model: LoadedModel):
    prompt = encode_problem(chat_model, problem())
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "105"}]
    whole = chat_model.tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == shown(chat_model, prompt) + "105<|im_end|>\n"
    assert prompt.token_ids + encode_solution(chat_model, prompt, "105") == tuple(
        chat_model.tokenizer.encode(whole.removesuffix("\n"), add_special_tokens=False)
    )


def test_tokens_do_not_merge_over_the_border(base_model: LoadedModel):
    """'answ' + 'er' is one token fewer when tokenised in one piece, which no sampler could have produced."""
    prompt = encode_problem(base_model, problem("The answ"))
    solution = encode_solution(base_model, prompt, "er is 3")
    in_one_piece = base_model.tokenizer.encode("The answer is 3", add_special_tokens=False)
    assert len(prompt.token_ids) + len(solution) - 1 > len(in_one_piece)
    assert prompt.token_ids == tuple(base_model.tokenizer.encode("The answ"))
    assert decode(base_model, prompt.token_ids + solution) == "The answer is 3"


@pytest.mark.slow
@settings(max_examples=50)
@given(question=TEXT, solution=TEXT)
def test_question_and_solution_come_back_exactly(tiny: LoadedModel, question: str, solution: str):
    prompt = encode_problem(tiny, problem(question))
    ids = encode_solution(tiny, prompt, solution)
    assert ids[-1] in tiny.eos_ids
    assert not set(ids[:-1]) & tiny.eos_ids
    assert decode(tiny, prompt.token_ids) == question
    assert decode(tiny, ids) == solution


def test_decoding_tidies_nothing(tiny: LoadedModel):
    text = " a , b . don 't  !"
    assert decode(tiny, tiny.tokenizer.encode(text)) == text
    assert decode(tiny, []) == ""
