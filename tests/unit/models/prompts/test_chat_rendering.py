"""Chat templates of the shapes that real models have: the right text, or one sentence that names the problem."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest

from heliostat.config import ConfigError, ModelSection
from heliostat.models import LoadedModel, encode_problem, encode_solution, load_model, save_model
from heliostat.models.prompts.chat_template import day_of, with_arguments, with_day, without_day
from heliostat.types import Problem

USER = ({"role": "user", "content": "2+2?"},)
SYSTEM = ({"role": "system", "content": "Be brief."}, *USER)
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
CUE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + CUE
TODAY = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML


def shown(loaded: LoadedModel, messages: tuple[dict[str, str], ...] = USER, system: str = "") -> str:
    problem = Problem("a", "t", messages, place="rows.jsonl, line 7")
    return loaded.tokenizer.decode(list(encode_problem(loaded, problem, "auto", system).token_ids))


REFUSED = {
    "drops the system message": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[Q]{{ m['content'] }}[A]{% endif %}{% endfor %}",
        SYSTEM,
        r"leaves out what the system says \('Be brief.'\); put it into the question \(task.template\)",
    ),
    "drops the question": ("{{ messages[0]['role'] }}" + CUE, USER, r"leaves out what the user says \('2\+2\?'\)"),
    "cuts the question": ("{{ messages[0]['content'][:2] }}" + CUE, USER, "leaves out what the user says"),
    "refuses the system message": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML,
        SYSTEM,
        "refuses its messages: no system role; without the system message it works; put it into the question",
    ),
    "no generation prompt": (
        "{% for m in messages %}" + TURN + "{% endfor %}",
        USER,
        r"writes no generation prompt: it begins an assistant's turn with '<\|im_start\|>assistant'",
    ),
    "fails": ("{{ 'x' + messages[0]['tool_calls'] | default(none) }}", USER, "fails on its messages: TypeError"),
    "undefined": ("{{ messages[0].name.first }}" + CHATML, USER, "refuses its messages: .*no attribute"),
    "syntax": ("{% for m in messages %}\n{{ m['content'] }}", USER, r"is not a valid template \(line \d\)"),
    "several and no default": ({"rag": CHATML, "tool_use": CHATML}, USER, "multiple chat templates with no default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_fails_or_loses_words_is_one_sentence_with_the_row(name: str, model_with) -> None:
    template, messages, reason = REFUSED[name]
    with pytest.raises(
        ValueError, match=r"^problem 'a' \(rows.jsonl, line 7\): the chat template of model 'm' "
    ) as caught:
        shown(model_with(template), messages)
    assert re.search(reason, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_system_message_of_the_recipe_must_survive_as_well(model_with) -> None:
    template, _, reason = REFUSED["drops the system message"]
    with pytest.raises(ValueError, match=reason):
        shown(model_with(template), USER, "Be brief.")


ACCEPTED = {
    "needs no header": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[Q]{{ m['content'] }}[A]{% else %}{{ m['content'] }}<|eos|>"
        "{% endif %}{% endfor %}",
        "[Q]2+2?[A]",
    ),
    "reads contents in parts": (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>{% endfor %}" + CUE,
        "2+2?<|im_end|><|im_start|>assistant\n",
    ),
    "named with a default": (
        {"default": CHATML, "rag": "x"},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "trims": ("{{ messages[0]['content'] | trim }}" + CUE, "2+2?<|im_start|>assistant\n"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_templates_are_used_as_they_are_meant(name: str, model_with) -> None:
    template, text = ACCEPTED[name]
    asked = "2+2?\n" if name == "trims" else "2+2?"
    assert shown(model_with(template), ({"role": "user", "content": asked},)) == text


def test_a_tag_that_the_prompt_has_opened_is_not_opened_again(model_with) -> None:
    loaded = model_with(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    for asked in (USER, "2+2?"):
        prompt = encode_problem(loaded, Problem("a", "t", asked), chat=True)
        for solution in ("<think>\ntwo</think>4", "<think>two</think>4", "two</think>4"):
            said = loaded.tokenizer.decode(list(prompt.token_ids + encode_solution(loaded, prompt, solution)))
            assert said.endswith("assistant\n<think>\ntwo</think>4<|im_end|>"), said


# -- arguments ---------------------------------------------------------------------------------------------------------

THINKING = CHATML + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"


def test_arguments_hold_wherever_the_tokenizer_goes(tmp_path: Path, model_with) -> None:
    plain, told = model_with(THINKING), with_arguments(model_with(THINKING), {"enable_thinking": False})
    assert shown(told) == shown(plain) + "<think>\n\n</think>"
    messages = [dict(message) for message in USER]
    elsewhere = told.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert elsewhere == shown(told)
    own = told.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert own == shown(plain)
    save_model(told, tmp_path / "saved")
    section = ModelSection(path=str(tmp_path / "saved"), chat_template_kwargs={"enable_thinking": False})
    again = load_model(section, 0)
    assert shown(again) == shown(told)
    assert again.tokenizer.chat_template == told.tokenizer.chat_template  # and not written in twice


@pytest.mark.parametrize("value", [True, False, 3, 0.5, 'it\'s "é" {{ x }}\n', ["a", False], {"a": {"b": [1, "x"]}}])
def test_an_argument_of_any_kind_arrives_as_it_is(value: Any, model_with) -> None:
    template = "\n" + CHATML + "{% if x is defined %}{{ x | tojson }}{% endif %}"
    loaded = with_arguments(model_with(template), {"x": value})
    given = model_with(template).tokenizer.apply_chat_template(
        [dict(message) for message in USER], tokenize=False, add_generation_prompt=True, x=value
    )
    assert shown(loaded) == given
    assert given.startswith("\n")


def test_an_argument_that_no_template_reads_is_refused(tiny: LoadedModel, model_with) -> None:
    with pytest.raises(ConfigError, match=r"does not use 'enable_thinkin' \(did you mean 'enable_thinking'\?\)"):
        with_arguments(model_with(THINKING), {"enable_thinkin": False})
    with pytest.raises(ConfigError, match="messages is given to the chat template by Heliostat itself"):
        with_arguments(model_with(THINKING), {"messages": []})
    with pytest.raises(ConfigError, match="needs a chat template"):
        with_arguments(model_with(None), {"enable_thinking": False})


# -- the day -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fixed_day_is_spelled_as_the_clock_would(model_with) -> None:
    moment = datetime.datetime(2026, 3, 5, 4, 7, 9)
    directives = [*"aAbBdHIjmMpSUwWyY", "-d", "-m"]
    for directive in directives:
        loaded = with_day(model_with("{{ strftime_now('<%" + directive + ">') }}" + CHATML), moment.isoformat())
        assert shown(loaded).startswith(moment.strftime(f"<%{directive}>")), directive


LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}Today Date: {{ date_string }}\n"
)


@pytest.mark.slow
def test_the_day_can_be_fixed_again_and_is_not_saved(tmp_path: Path, model_with) -> None:
    for template in (TODAY, LLAMA + CHATML):
        loaded = model_with(template)
        for day, words in (("2026-03-05", "05 Mar 2026"), ("2026-12-24", "24 Dec 2026")):
            loaded = with_day(loaded, day)
            assert words in shown(loaded)
            assert day_of(loaded) == day
        assert without_day(loaded.tokenizer.chat_template) == template
    save_model(loaded, tmp_path / "saved")
    again = load_model(ModelSection(path=str(tmp_path / "saved")), 0)
    assert without_day(again.tokenizer.chat_template) == LLAMA + CHATML
    assert day_of(again) is not None  # a model in use tells the day on which it was loaded
    assert with_day(model_with(CHATML), "2026-03-05").tokenizer.chat_template == CHATML


def test_an_argument_goes_before_the_day(model_with) -> None:
    loaded = with_day(with_arguments(model_with(LLAMA + CHATML), {"date_string": "1 May 1886"}), "2026-03-05")
    assert shown(loaded).startswith("Today Date: 1 May 1886\n")
