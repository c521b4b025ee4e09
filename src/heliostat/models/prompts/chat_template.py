"""A chat template with the recipe's arguments and a fixed day written into it.

What is written into the template holds wherever the tokenizer goes: sampling, training, evaluation, other libraries'
trainers, and the saved model. Arguments are defaults there, which a caller's own override. The day is not saved: a
model in use tells its own.

    {%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}{{ '' }} + the template

Left out: rendering (``chat_rendering``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from heliostat.config import ConfigError, nearest
from heliostat.models.loaded_model import LoadedModel, turn_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = str | dict[str, str]

_SEAM = "{{ '' }}"  # a block or comment in its place would swallow a line break that the template begins with
_DAY = re.compile(r"\{#- the day: (\S+) -#\}.*?\{#- so far the day #\}\{\{ '' \}\}", re.DOTALL)
_OURS = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "strftime_now"}
_DIRECTIVES = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf"


def with_arguments(loaded: LoadedModel, arguments: Mapping[str, Any]) -> LoadedModel:
    """The model with arguments written into its tokenizer's chat template.

    Raises:
        ConfigError: there is no template, or none of that name in it.
    """
    if not arguments:
        return loaded
    template = loaded.tokenizer.chat_template
    if not template:
        raise ConfigError(
            f"model.chat_template_kwargs needs a chat template, and the tokenizer of model '{loaded.name}' has none"
        )
    text = template if isinstance(template, str) else "\n".join(template.values())
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    for name in arguments:
        if name in _OURS:
            raise ConfigError(f"model.chat_template_kwargs.{name} is given to the chat template by Heliostat itself")
        if name not in words:
            raise ConfigError(
                f"model.chat_template_kwargs.{name}: the chat template of model '{loaded.name}' does not use "
                f"'{name}'{nearest(name, words)}"
            )
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in arguments.items()
    )
    return _with_template(loaded, _each(template, lambda one: defaults + _SEAM + one.removeprefix(defaults + _SEAM)))


def uses_day(template: Template | None) -> bool:
    """Whether a template asks what day it is."""
    return "strftime_now" in str(template or "")


def with_day(loaded: LoadedModel, moment: str) -> LoadedModel:
    """The model with a moment, in ISO format, in place of the clock that its chat template reads.

    **Limits** A template that asks no clock is left as it is.
    """
    template = loaded.tokenizer.chat_template
    if not uses_day(template):
        return loaded
    now = datetime.fromisoformat(moment)
    spelled = {f"%{flag}{letter}": now.strftime(f"%{flag}{letter}") for letter in _DIRECTIVES for flag in ("", "-")}
    steps = "".join(
        f" | replace({_literal(directive)}, {_literal(text)})"
        for directive, text in spelled.items()
        if text != directive
    )
    macro = f"{{%- macro strftime_now(format) -%}}{{{{ format{steps} }}}}{{%- endmacro -%}}"
    head = f"{{#- the day: {moment} -#}}{macro}{{#- so far the day #}}{_SEAM}"
    return _with_template(loaded, _each(without_day(template), lambda one: head + one))


def without_day(template: Any) -> Any:
    """A template that reads the clock again."""
    return _each(template, lambda one: _DAY.sub("", one)) if template else template


def day_of(loaded: LoadedModel) -> str | None:
    """The moment that stands in for the clock, if one does."""
    found = _DAY.search(str(loaded.tokenizer.chat_template or ""))
    return found.group(1) if found else None


def clock(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer's template would be told now, in ISO format; a day where it asks for no time."""
    messages = [{"role": "user", "content": "?"}]
    asks_time = re.search(r"%-?[cfHIklMprRsSTXzZ]", str(tokenizer.chat_template))
    text = "{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}" if asks_time else "{{ strftime_now('%Y-%m-%d') }}"
    return str(tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False))


def _with_template(loaded: LoadedModel, template: Template) -> LoadedModel:
    loaded.tokenizer.chat_template = template
    turn_end_id, eos_ids = turn_ends(loaded.model, loaded.tokenizer, loaded.eos_id)
    return replace(loaded, turn_end_id=turn_end_id, eos_ids=eos_ids)


def _each(template: Template, change: Callable[[str], str]) -> Template:
    return change(template) if isinstance(template, str) else {name: change(one) for name, one in template.items()}


def _literal(value: Any) -> str:
    """A value as a template writes it."""
    return json.dumps(value, ensure_ascii=True)
