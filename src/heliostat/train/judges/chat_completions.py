"""A chat completion of a server of OpenAI's form: the request that it takes, and the reply in its answer.

    POST /v1/chat/completions    system and user message, temperature 0, max_tokens; or what the server takes instead

Models that reason want ``max_completion_tokens``, some take no temperature, and others no system message. Which form a
model takes is read from the server's own refusals, and remembered.

Left out: questions (``questions``), their cache and their cost (``language_model``).
"""

from __future__ import annotations

import http
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliostat.rollout import ServerError
from heliostat.rollout.server.client import Server, shortened
from heliostat.train.judges.questions import Messages, Unreadable
from heliostat.train.judges.reply_cache import Reply

PATH = "/v1/chat/completions"

ENDED = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence")
"""Reasons that servers give for a reply that ended by itself; any other may have cut it."""

OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": ""}
"""Settings of a request that some models refuse -> the name that they take instead; empty: none."""

REFUSED = (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY)
_NO_SYSTEM = re.compile(r"system (role|message)s? (is |are )?(not|un)|roles must alternate", re.IGNORECASE)
"""The words with which chat templates of Gemma and Mistral refuse a system message."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Chunk(_Part):
    text: str = ""


class _Message(_Part):
    content: str | list[_Chunk] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The reply; of one in chunks, those of text, since others hold a model's reasoning."""
        if isinstance(self.content, list):
            return "".join(chunk.text for chunk in self.content)
        return self.content or ""


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Part):
    prompt_tokens: int | None = Field(None, ge=0)
    completion_tokens: int | None = Field(None, ge=0)


class _Answer(_Part):
    choices: list[_Choice] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class RequestForm:
    """The form of a request that a model takes.

    Attributes:
        settings: temperature and limit of a reply, by the names that it takes.
        takes_system: whether it takes a system message; else its text begins the user's.
    """

    settings: Mapping[str, int]
    takes_system: bool = True

    def body(self, messages: Messages) -> dict[str, Any]:
        """Return messages and settings as this model takes them."""
        if not self.takes_system and messages[0]["role"] == "system":
            system, first, *others = messages
            text = f"{system['content']}\n\n{first['content']}"
            messages = [{**first, "content": text}, *others]
        return {"messages": messages, **self.settings}

    def without(self, refusal: str) -> RequestForm | None:
        """Return the form that avoids a refusal; ``None`` if there is none.

        **Limits** Each of the three is given up once, so there are at most four forms.
        """
        for name, other in OTHER_NAMES.items():
            if name in self.settings and (other or name) in refusal:
                kept = {key: value for key, value in self.settings.items() if key != name}
                return replace(self, settings=kept | ({other: self.settings[name]} if other else {}))
        if self.takes_system and _NO_SYSTEM.search(refusal):
            return replace(self, takes_system=False)
        return None


@dataclass(slots=True)
class ChatCompletions:
    """Asks one model of a server; several threads may ask at a time.

    Attributes:
        max_tokens: tokens of a reply.

    **Limits** A server that refuses nothing gets a system message, ``temperature`` and ``max_tokens`` in every request.
    """

    server: Server
    model: str
    max_tokens: int
    _form: RequestForm = field(init=False)

    def __post_init__(self) -> None:
        self._form = RequestForm({"temperature": 0, "max_tokens": self.max_tokens})

    def post(self, messages: Messages) -> Any:
        """Ask, and return the answer.

        Raises:
            ServerError: there is none.
            SamplingStopped: the server was closed.
        """
        form = begun = self._form  # another thread may change it meanwhile
        while True:
            try:
                answer = self.server.post(PATH, {"model": self.model, **form.body(messages)})
            except ServerError as error:
                other = form.without(str(error)) if error.status in REFUSED else None
                if other is None:
                    raise
                form = other
                continue
            if form is not begun:
                self._go_on_with(form)
            return answer

    def _go_on_with(self, form: RequestForm) -> None:
        """Ask in a form from now on that has been answered; one refused for another reason changes nothing."""
        if "temperature" in self._form.settings and "temperature" not in form.settings:
            warnings.warn(
                f"judge '{self.model}' at {self.server.url} takes no temperature, so it may answer a question "
                "otherwise each time; this run keeps its first replies",
                stacklevel=2,
            )
        self._form = form


def read_reply(content: Any, read: Callable[[str], float]) -> Reply:
    """Read an answer of the server; one that cannot be read is a reply without a score."""
    tokens = _tokens_of(content)
    try:
        answer = _Answer.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "its whole"
        return Reply(None, f"the judge's answer has no usable '{where}'", *tokens)
    choice = answer.choices[0]
    if choice.message.refusal:
        return Reply(None, f"the judge refused: {shortened(choice.message.refusal, 80)}", *tokens)
    reason = choice.finish_reason or ""
    if reason.lower() not in ENDED:
        return Reply(None, f"the judge's reply ended by '{shortened(reason, 40)}'", *tokens)
    text = choice.message.text
    try:
        return Reply(read(text), "", *tokens)
    except Unreadable as error:
        return Reply(None, f"{error}, and one ends with {shortened(text[-80:], 80)!r}", *tokens)


def _tokens_of(content: object) -> tuple[int, int]:
    """Return the tokens that an answer states, also one of another form, since they are paid too; else 0."""
    usage = content.get("usage") if isinstance(content, Mapping) else None
    try:
        stated = _Usage.model_validate(usage)
    except ValidationError:
        return 0, 0
    return stated.prompt_tokens or 0, stated.completion_tokens or 0
