"""Write the recipe's arguments and a fixed date into a chat template.

Changes to the template apply everywhere the tokenizer is used: sampling, training, evaluation, other libraries'
trainers, and the saved model. The arguments are defaults that a caller may override. The date is not saved, so that a
model in use reads its own clock.

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
    """Return the model with arguments written into its tokenizer's chat template.

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
    """Return whether a template reads the clock."""
    return "strftime_now" in str(template or "")


def with_day(loaded: LoadedModel, moment: str) -> LoadedModel:
    """Return the model with a fixed time, in ISO format, in place of the clock that its chat template reads.

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
    """Return the template without its fixed time."""
    return _each(template, lambda one: _DAY.sub("", one)) if template else template


def day_of(loaded: LoadedModel) -> str | None:
    """Return the fixed time in the template, if any."""
    found = _DAY.search(str(loaded.tokenizer.chat_template or ""))
    return found.group(1) if found else None


def clock(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the current time for the tokenizer's template, in ISO format; only the date if it reads no time."""
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
    """Format a value as a template literal."""
    return json.dumps(value, ensure_ascii=True)
