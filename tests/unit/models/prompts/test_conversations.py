"""Every assistant turn is taught in its place and nobody else's words: against transformers' own mask, and by hand."""

import pytest

from heliostat.models import LoadedModel, decode, encode_problem, encode_turns
from heliostat.types import Problem

pytestmark = pytest.mark.filterwarnings("ignore:.*in data it stays text")
CUE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + CUE
MARKED = (  # the same text, with the assistant's part named
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}" + CUE
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ ' ' + m['content'] }}<|eos|>"
    "{% endgeneration %}{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% for c in m['tool_calls'] %}<tool>{{ c['function'] | tojson }}</tool>{% endfor %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}" + CUE
)
ASK, REPLY = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4, of course"}
MORE = [{"role": "user", "content": "sure? say 4, of course"}, {"role": "assistant", "content": "yes\nquite"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
RESULT = {"role": "tool", "content": "four", "name": "add"}
TALKS = {
    "one turn": [ASK, REPLY],
    "two turns": [ASK, REPLY, *MORE],
    "system": [{"role": "system", "content": "Be brief."}, ASK, REPLY, *MORE],
    "two in a row": [ASK, REPLY, {"role": "assistant", "content": "And more."}],
    "repeats the user": [ASK, {"role": "assistant", "content": "2+2?"}, *MORE],
}


def worked(talk: list[dict]) -> Problem:
    start = next(number for number, turn in enumerate(talk) if turn["role"] == "assistant")
    return Problem("a", "t", tuple(talk[:start]), turns=tuple(talk[start:]), place="rows.jsonl, line 7")


def reference(loaded: LoadedModel, talk: list[dict]) -> tuple[list[int], list[list[int]]]:
    """The whole conversation's ids, and those that transformers masks as the assistant's, run by run."""
    out = loaded.tokenizer.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    runs: list[list[int]] = []
    previous = 0
    for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True):
        if mask and not previous:
            runs.append([])
        if mask:
            runs[-1].append(token)
        previous = mask
    return list(out["input_ids"]), runs


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [MARKED, SPACED])
def test_taught_tokens_are_those_of_the_generation_mask(talk: str, template: str, model_with) -> None:
    if template == SPACED and talk == "two in a row":
        pytest.skip("turns that touch are one run of the mask")
    loaded = model_with(template)
    whole, runs = reference(loaded, TALKS[talk])
    taught = list(encode_turns(loaded, worked(TALKS[talk])))
    assert [list(ids) for _, ids in taught] == runs
    for prompt, ids in taught:  # in its place: the conversation up to there, token by token
        assert whole[: len(prompt.token_ids) + len(ids)] == [*prompt.token_ids, *ids]


@pytest.mark.parametrize("talk", TALKS)
def test_without_a_mask_the_same_tokens_are_taught(talk: str, model_with) -> None:
    told = [list(encode_turns(model_with(template), worked(TALKS[talk]))) for template in (CHATML, MARKED)]
    assert told[0] == told[1]


def test_tool_turns_are_context_and_calls_are_taught(model_with) -> None:
    loaded, talk = model_with(TOOLS), [ASK, CALL, RESULT, REPLY]
    _, runs = reference(loaded, talk)
    taught = list(encode_turns(loaded, worked(talk)))
    assert [list(ids) for _, ids in taught] == runs
    assert '"name": "add"' in decode(loaded, taught[0][1])
    assert "four" in loaded.tokenizer.decode(list(taught[1][0].token_ids))
    with pytest.raises(ValueError, match=r"line 7\).* does not write down which tool the assistant calls \('add'\)"):
        list(encode_turns(model_with(CHATML), worked(talk)))


def test_thoughts_that_a_template_drops_from_old_turns_are_taught_in_their_own(model_with) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
        "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}" + CUE
    )
    loaded = model_with(template)
    first = {"role": "assistant", "content": "<think>two and two</think>4"}
    taught = list(encode_turns(loaded, worked([ASK, first, *MORE])))
    assert decode(loaded, taught[0][1]) == first["content"]
    assert "<think>" not in loaded.tokenizer.decode(list(taught[1][0].token_ids))


def test_control_tokens_in_a_conversation_are_text(model_with) -> None:
    loaded = model_with(MARKED)
    talk = [ASK, {"role": "assistant", "content": "say <|im_end|> to end"}, {**ASK, "content": "<|im_start|>assistant"}]
    taught = list(encode_turns(loaded, worked([*talk, REPLY])))
    for prompt, ids in taught:
        assert ids[-1] == loaded.turn_end_id
        assert not set(ids[:-1]) & loaded.eos_ids
        assert prompt.token_ids.count(loaded.turn_end_id) == 2 * taught.index((prompt, ids)) + 1
    assert decode(loaded, taught[0][1]) == "say <|im_end|> to end"


def test_plain_prompts_take_one_turn_and_no_more(tiny: LoadedModel) -> None:
    one = Problem("a", "t", "2+2?", turns=(REPLY,))
    [(prompt, ids)] = encode_turns(tiny, one)
    assert prompt == encode_problem(tiny, one)
    assert decode(tiny, ids) == REPLY["content"]
    with pytest.raises(ValueError, match=r"several turns needs a chat template; set model.chat = true"):
        list(encode_turns(tiny, Problem("a", "t", "2+2?", turns=(REPLY, *MORE))))
