"""Turns as a chat template writes them, found by rendering conversations of stand-in words.

    <|im_start|>assistant SAMPLED <|im_end|> <|im_start|>user OBSERVATION <|im_end|> <|im_start|>assistant ...
                                 ^ the continuation: the template's text up to the next turn           ^

A template is a third-party program. Some of them rewrite earlier turns once a conversation goes on: they drop an
assistant's thoughts, or repeat the system message or the tools before the last question. One rendering of a whole
conversation is then no prefix of the next one, and a trajectory, whose ids are only appended, is not what the template
would write. Probes detect this at set-up: the continuation alone is used, and a warning says so.

Left out: plain text (``plain_turns``), and the rendering of the first prompt (``chat_rendering``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heliostat.config import ConfigError
from heliostat.models.loaded_model import LoadedModel, render_messages
from heliostat.models.prompts.control_tokens import encode_marked, free_mark, marked, pattern_of
from heliostat.models.prompts.encoding import decode
from heliostat.models.prompts.plain_turns import as_text, joined, overlap
from heliostat.types import Message, Problem

_TURN, _NEXT_TURN = "heliostat-turn", "heliostat-reply"
_OBSERVATION, _NEXT_OBSERVATION = "heliostat-observation", "heliostat-result"
_THOUGHT = "<think>\nheliostat-thought\n</think>\n\n"
_TOOL_NAME = "heliostat_tool"
_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "heliostat-tool",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


@dataclass(frozen=True, slots=True)
class ChatTurns:
    """The turns of one chat template after prompts of one form.

    Attributes:
        before: stand-in messages before a sampled turn.
        options: arguments of the template.
        role: the role of observations that are texts: ``tool`` or ``user``.
        takes_tool_role: whether messages of role ``tool`` are written, with the beginning of an answer after them.
        takes_user_twice: whether a user message may follow another.
        takes_system: whether a system message may be first.
        lists_tools: whether the template writes the tools of the prompt itself.
        marker: the text of ``turn_end_id`` if the template closes an assistant turn with it, else empty.
        lead: the beginning of every continuation, up to its first control token and at most up to the observation.
        frame: the text around the observation in a continuation, without control tokens.
    """

    loaded: LoadedModel
    before: tuple[Message, ...]
    options: Mapping[str, Any]
    role: str = "user"
    takes_tool_role: bool = False
    takes_user_twice: bool = False
    takes_system: bool = False
    lists_tools: bool = False
    marker: str = ""
    lead: str = ""
    frame: tuple[str, str] = ("", "")

    def continuation(self, observation: str | Sequence[Message], last_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the template's continuation after a sampled turn; see ``TurnFormat.continuation``."""
        said = self._messages(observation)
        texts = [str(message["content"]) for message in said]
        mark = free_mark(texts)
        said = [
            {**message, "content": marked(self.loaded, text, mark)} for message, text in zip(said, texts, strict=True)
        ]
        try:
            tail = self.after(said)
        except Exception as error:  # a template may raise anything
            raise ValueError(
                f"the chat template of model '{self.loaded.name}' refuses an observation: {_in_one_line(error)}"
            ) from error
        if self.marker and last_ids and last_ids[-1] == self.loaded.turn_end_id:
            ids = encode_marked(self.loaded, tail[tail.index(self.marker) :], mark)
            return tuple(ids[ids.index(self.loaded.turn_end_id) + 1 :])
        return tuple(encode_marked(self.loaded, tail[overlap(self.loaded, last_ids, self.lead) :], mark))

    def with_observation(self, problem: Problem, observation: str | Sequence[Message]) -> Problem:
        """Append the first observation to the chat; see ``TurnFormat.with_observation``."""
        if isinstance(problem.prompt, str) and isinstance(observation, str):
            return replace(problem, prompt=joined(problem.prompt, observation))
        asked: list[Message] = (
            [{"role": "user", "content": problem.prompt}] * bool(problem.prompt)
            if isinstance(problem.prompt, str)
            else [dict(message) for message in problem.prompt]
        )
        if isinstance(observation, str):
            return replace(problem, prompt=tuple(_appended(asked, observation)))
        shown = [dict(message) for message in observation]
        if shown and shown[0]["role"] == "system" and not any(message["role"] == "system" for message in asked):
            asked.insert(0, shown.pop(0))
        return replace(problem, prompt=tuple(self._merged([*asked, *shown])), markup=())

    def after(self, said: Sequence[Message], turn: str = _TURN) -> str:
        """Return the text that the template writes after a turn, up to the beginning of the next one.

        Raises:
            Exception: any error of the template; ``ValueError`` if the turn is not in its text.
        """
        text = self.render([{"role": "assistant", "content": turn}, *said])
        return text[text.index(turn) + len(turn) :]

    def unframed(self, text: str) -> str | None:
        """Return the observation in a continuation's text; ``None``: the text is not of this form.

        A turn that was ended by a stop string may have written the whitespace at the beginning already.
        """
        before, after = self.frame[0].lstrip(), self.frame[1]
        text = text.lstrip() if before else text
        is_framed = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
        return text[len(before) : len(text) - len(after)] if is_framed else None

    def render(self, said: Sequence[Message], generation_prompt: bool = True) -> str:
        """Render the stand-in messages and those that follow."""
        messages = [*self.before, *said]
        return render_messages(self.loaded.tokenizer, messages, add_generation_prompt=generation_prompt, **self.options)

    def _messages(self, observation: str | Sequence[Message]) -> list[Message]:
        """Return an observation as messages of roles that the template takes."""
        if isinstance(observation, str) or not observation:
            return [{"role": self.role, "content": as_text(observation)}]
        said = []
        for message in observation:
            if message["role"] == "assistant":
                raise ValueError("an environment's observation holds a message of the assistant, who is the model")
            keeps = message["role"] == "tool" and self.takes_tool_role
            said.append(dict(message) if keeps else {"role": "user", "content": message["content"]})
        return self._merged(said)

    def _merged(self, messages: Sequence[Message]) -> list[Message]:
        """Merge user messages in a row, if the template refuses them."""
        merged: list[Message] = []
        for message in messages:
            again = merged and message["role"] == merged[-1]["role"] == "user"
            if again and not self.takes_user_twice:
                merged[-1] = {**message, "content": joined(str(merged[-1]["content"]), str(message["content"]))}
            else:
                merged.append(message)
        return merged


def probe_chat(loaded: LoadedModel, roles: Sequence[str], with_tools: bool) -> ChatTurns:
    """Find out how a template continues prompts of the given roles after an assistant turn.

    Raises:
        ConfigError: it cannot.
    """
    reasons: list[str] = []
    for turns in _candidates(loaded, roles, with_tools):
        try:
            tail = turns.after(_said(_OBSERVATION))
        except Exception as error:  # a template may raise anything
            reasons.append(f"it refuses them: {_in_one_line(error)}")
            continue
        if _OBSERVATION not in tail:
            reasons.append("it leaves out a user message that follows an assistant turn")
        elif repeated := [str(word) for word in (*_words(turns.before), _TOOL_NAME) if str(word) in tail]:
            reasons.append(f"it repeats the beginning after every turn ({repeated[0]})")
        else:
            return _described(turns, tail, roles, with_tools)
    raise ConfigError(
        f"the chat template of model '{loaded.name}' cannot be used with an environment: it takes no second turn "
        f"({reasons[0]}); use another template, or plain-text prompts with model.chat = false"
    )


def _candidates(loaded: LoadedModel, roles: Sequence[str], with_tools: bool) -> Iterator[ChatTurns]:
    """Yield conversations to probe: as asked, then without tools, without system, and with one question alone."""
    asked = [role for role in roles if role != "tool"]
    while asked and asked[-1] == "assistant":
        asked.pop()
    for kept in (asked, [role for role in asked if role not in ("system", "developer")], ["user"]):
        before = tuple({"role": role, "content": f"heliostat-{role}-{number}"} for number, role in enumerate(kept))
        for options in ({"tools": [_TOOL]}, {}) if with_tools else ({},):
            if before:
                yield ChatTurns(loaded, before, options)


def _described(turns: ChatTurns, tail: str, roles: Sequence[str], with_tools: bool) -> ChatTurns:
    """Return the turns with the template's other properties, and warn if it rewrites earlier turns."""
    loaded = turns.loaded
    opening = turns.render(()).removeprefix(turns.render((), generation_prompt=False))
    takes_tool_role = _accepts(turns, [{"role": "tool", "content": _OBSERVATION}], opening)
    marker = str(loaded.tokenizer.convert_ids_to_tokens(loaded.turn_end_id))
    described = replace(
        turns,
        role="tool" if with_tools and takes_tool_role else "user",
        takes_tool_role=takes_tool_role,
        takes_user_twice=_accepts(turns, _said(_OBSERVATION, _NEXT_OBSERVATION), opening),
        takes_system=_takes_system(turns),
        lists_tools=_lists_tools(turns),
        marker=marker if tail.lstrip().startswith(marker) else "",
        lead=_lead(loaded, tail),
    )
    described = replace(described, frame=_frame(described))
    asked = next(_candidates(loaded, roles, with_tools))
    if change := _rewrites(asked, described.role):
        _warn_once(loaded, change)
    return described


def _accepts(turns: ChatTurns, said: Sequence[Message], opening: str) -> bool:
    """Return whether the template writes all of an observation, and the beginning of an answer after it."""
    try:
        tail = turns.after(said)
    except Exception:  # a template may raise anything
        return False
    return tail.endswith(opening) and all(str(message["content"]) in tail for message in said)


def _takes_system(turns: ChatTurns) -> bool:
    messages = [{"role": "system", "content": _OBSERVATION}, {"role": "user", "content": "?"}]
    try:
        return _OBSERVATION in render_messages(turns.loaded.tokenizer, messages, add_generation_prompt=True)
    except Exception:  # a template may raise anything
        return False


def _lists_tools(turns: ChatTurns) -> bool:
    messages = [{"role": "user", "content": "?"}]
    try:
        text = render_messages(turns.loaded.tokenizer, messages, add_generation_prompt=True, tools=[_TOOL])
    except Exception:  # a template may raise anything
        return False
    return _TOOL_NAME in text


def _lead(loaded: LoadedModel, tail: str) -> str:
    lead = tail[: tail.index(_OBSERVATION)]
    control = pattern_of(loaded)
    found = control.search(lead) if control else None
    return lead[: found.start()] if found else lead


def _frame(turns: ChatTurns) -> tuple[str, str]:
    tail = turns.after([{"role": turns.role, "content": _OBSERVATION}])
    text = decode(turns.loaded, encode_marked(turns.loaded, tail, free_mark([])))
    before, _, after = text.partition(_OBSERVATION)
    return before, after


def _rewrites(turns: ChatTurns, role: str) -> str:
    """Say how the template changes earlier turns of a conversation that goes on; empty if it only appends."""
    first = {"role": role, "content": _OBSERVATION}
    second = {"role": role, "content": _NEXT_OBSERVATION}
    try:
        prompt = turns.render(())
        for words in (_TURN, _THOUGHT + _TURN):
            turn = {"role": "assistant", "content": words}
            one = turns.render([turn, first])
            if not _follows(one, prompt, words):
                return "it drops or changes the sampled turn" if words == _TURN else "it drops thoughts of older turns"
            reply = {"role": "assistant", "content": _NEXT_TURN}
            two = turns.render([turn, first, reply, second])
            tail = one[one.index(_TURN) + len(_TURN) :].replace(_OBSERVATION, _NEXT_OBSERVATION)
            if not _follows(two, one, _NEXT_TURN) or not two.endswith(_NEXT_TURN + tail):
                return "it changes earlier messages, or its text between turns"
    except Exception as error:  # a template may raise anything
        return f"it fails on some conversations: {_in_one_line(error)}"
    return ""


def _follows(longer: str, shorter: str, words: str) -> bool:
    """Return whether ``longer`` begins with ``shorter`` and the words, with any whitespace between."""
    return longer.startswith(shorter) and longer[len(shorter) :].lstrip().startswith(words)


def _warn_once(loaded: LoadedModel, change: str) -> None:
    if "turns rewritten" not in loaded.memo:
        loaded.memo["turns rewritten"] = change
        warnings.warn(
            f"the chat template of model '{loaded.name}' rewrites a conversation that goes on ({change}); in episodes "
            "every turn stays as it was sampled, and only the template's continuation is appended",
            stacklevel=4,
        )


def _said(*texts: str) -> list[Message]:
    return [{"role": "user", "content": text} for text in texts]


def _words(messages: Sequence[Message]) -> list[str]:
    return [str(message["content"]) for message in messages]


def _appended(messages: list[Message], text: str) -> list[Message]:
    """Append a text to the last user message."""
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        return [*messages, {"role": "user", "content": text}]
    last = messages[users[-1]]
    return [
        *messages[: users[-1]],
        {**last, "content": joined(str(last["content"]), text)},
        *messages[users[-1] + 1 :],
    ]


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
