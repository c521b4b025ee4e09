"""Render chat messages with the tokenizer's template, and check the result.

A template is a third-party program: it may refuse messages, fail, omit some of them, or write no header for the answer.
Each of these raises an error of one sentence that names the problem.

Left out: plain text (``encoding``), and the template's arguments (``chat_template``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heliostat.models.loaded_model import LoadedModel, render_messages
from heliostat.models.prompts.control_tokens import encode_marked, free_mark, has_typed, marked, pattern_of, warn_typed
from heliostat.types import Message, Problem

_WORDS = ("heliostat-question", "heliostat-answer")


def encode_chat(loaded: LoadedModel, problem: Problem, messages: Sequence[Message], to_continue: bool) -> list[int]:
    """Encode messages as the template renders them, up to the start of the answer.

    Args:
        to_continue: go on with the last message, instead of beginning a turn.

    Raises:
        ValueError: the template refuses them, fails, leaves one out, or writes no beginning of an answer.
    """
    texts = [str(message["content"]) for message in messages]
    mark = free_mark(texts)
    typed = [text for text in texts if has_typed(loaded, text)]
    if typed:
        pattern = pattern_of(loaded)
        found = pattern.search(typed[0]) if pattern else None
        warn_typed(loaded, found.group() if found else "", problem.described)
        messages = [
            {**message, "content": marked(loaded, text, mark)} for message, text in zip(messages, texts, strict=True)
        ]
    text = render(loaded, problem, messages, continue_last=to_continue)
    if not to_continue:
        _check_generation_prompt(loaded, problem)
    return encode_marked(loaded, text, mark)


def render(loaded: LoadedModel, problem: Problem, messages: Sequence[Message], *, continue_last: bool = False,
           generation_prompt: bool = True) -> str:  # fmt: skip
    """Render messages with the template, and check that every user and system message is present.

    Raises:
        ValueError: it refuses them, fails, or leaves one out.
    """
    options: dict[str, Any] = {"add_generation_prompt": generation_prompt and not continue_last}
    if continue_last:
        options["continue_final_message"] = True
    tools = problem.columns.get("tools")
    if isinstance(tools, list) and tools and all(isinstance(tool, Mapping) for tool in tools):
        options["tools"] = [dict(tool) for tool in tools]
    try:
        text = render_messages(loaded.tokenizer, messages, **options)
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"{problem.described}: the chat template of model '{loaded.name}' {_said(error)}"
            + _without_system(loaded, messages, options)
        ) from error
    if left_out := missing_from(text, messages):
        raise ValueError(
            f"{problem.described}: the chat template of model '{loaded.name}' leaves out what the "
            f"{left_out['role']} says ({str(left_out['content'])!r:.60})" + _way_out(left_out)
        )
    return text


def missing_from(text: str, messages: Sequence[Message]) -> Message | None:
    """Return the first non-assistant message that is missing from ``text``; each occurrence counts once."""
    rest = " ".join(text.split())
    missing = []
    for message in sorted(messages, key=lambda message: -len(message["content"])):
        words = " ".join(message["content"].split())
        if message["role"] == "assistant" or not words:
            continue  # templates leave out old thoughts on purpose
        if words not in rest:
            missing.append(message)
        rest = rest.replace(words, "\0", 1)
    return next((message for message in messages if message in missing), None)


def _way_out(message: Message) -> str:
    if message["role"] not in ("system", "developer"):
        return ""
    return "; put it into the question (task.template), or give prompts and model.system without it"


def _said(error: Exception) -> str:
    """Describe a template's failure, as the end of a sentence."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    reason = " ".join(str(error).split())
    if isinstance(error, TemplateSyntaxError):
        return f"is not a valid template (line {error.lineno}): {reason}"
    if isinstance(error, TemplateError | ValueError):
        return f"refuses its messages: {reason}"
    return f"fails on its messages: {type(error).__name__}: {reason}"


def _without_system(loaded: LoadedModel, messages: Sequence[Message], options: dict[str, Any]) -> str:
    """Return advice if the system message caused the failure."""
    rest = [message for message in messages if message["role"] not in ("system", "developer")]
    if len(rest) in (0, len(messages)):
        return ""
    try:
        render_messages(loaded.tokenizer, rest, **options)
    except Exception:  # it fails anyway
        return ""
    return "; without the system message it works" + _way_out({"role": "system", "content": ""})


def _check_generation_prompt(loaded: LoadedModel, problem: Problem) -> None:
    if "generation prompt" not in loaded.memo:
        loaded.memo["generation prompt"] = _missing_header(loaded)
    if header := str(loaded.memo["generation prompt"]):
        raise ValueError(
            f"{problem.described}: the chat template of model '{loaded.name}' writes no generation prompt: it begins "
            f"an assistant's turn with {header!r}, but not where add_generation_prompt asks for one; add that to the "
            "template in the model's folder"
        )


def _missing_header(loaded: LoadedModel) -> str:
    """Return the header of an assistant turn that the prompt lacks, as found by a probe."""
    asked: list[Message] = [{"role": "user", "content": _WORDS[0]}]
    answered = [*asked, {"role": "assistant", "content": _WORDS[1]}]
    try:
        bare = render_messages(loaded.tokenizer, asked, add_generation_prompt=False)
        prompt = render_messages(loaded.tokenizer, asked, add_generation_prompt=True)
        whole = render_messages(loaded.tokenizer, answered, add_generation_prompt=False)
    except Exception:  # a template for other conversations; its rendering of real ones is checked elsewhere
        return ""
    start = whole.find(_WORDS[1])
    if prompt != bare or start < 0 or not whole.startswith(bare):
        return ""
    return whole[len(bare) : start].strip()
