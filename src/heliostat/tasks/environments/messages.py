"""Messages between the pool and an environment's process.

Requests are pickled: the process trusts its parent. Replies are JSON, because the parent must not trust them: each
reader here checks one kind of value. The process reads its own values in the same way first, so that a value of the
wrong shape is a failure of the environment that names it, not a broken message.

Imports the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from heliostat.tasks.environments.contract import EnvironmentSpec, Observation, Step
from heliostat.tasks.sandbox.reported import finite_float

MAX_MESSAGE = 1 << 24
"""Bytes of the longest reply."""

_MAX_TEXT = 1 << 20  # characters of one observation; JSON needs up to six bytes for each
_MAX_EXTRA = 1 << 10  # characters of one further fact of a step
_MAX_EXTRAS = 32
_KNOWN: dict[str, type[int]] = {"success": bool, "calls": int, "errors": int, "invalid": bool}


@dataclass(frozen=True, slots=True)
class Loading:
    """The first message to a process.

    Attributes:
        isolates_random: whether each instance has random states of its own.
    """

    spec: EnvironmentSpec
    isolates_random: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A call of one instance.

    Attributes:
        serial: number of the request, which its reply must carry.
        kind: ``reset``, ``step``, ``oracle``, ``tools``, ``close``, or ``end`` for all instances.
        arguments: of the call.
    """

    serial: int
    kind: str
    instance: int
    arguments: tuple[Any, ...] = ()


def read_observation(value: object) -> Observation:
    """Check an observation: a text, or messages of JSON with a ``role`` and a ``content``.

    Raises:
        ValueError: it is neither, or too long.
    """
    if isinstance(value, str):
        if len(value) > _MAX_TEXT:
            raise ValueError(f"an observation of {len(value)} characters is longer than {_MAX_TEXT}")
        return _encodable(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"an observation must be a text or a list of messages, got {type(value).__name__}")
    for message in value:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message):
            raise ValueError(f"a message must have a 'role' and a 'content', got {message!r:.80}")
    return list(json.loads(_encodable(_as_json(value, _MAX_TEXT, "an observation"))))


def read_step(value: object) -> Step:
    """Check a step that was sent as ``{observation, reward, done, info}``.

    Raises:
        ValueError: a part has the wrong type or size.
    """
    if not isinstance(value, dict) or value.keys() != {"observation", "reward", "done", "info"}:
        raise ValueError("a step of the wrong shape")
    if not isinstance(value["done"], bool) or not isinstance(value["info"], dict):
        raise ValueError("a step's 'done' must be a bool, and its 'info' a dict")
    reward = value["reward"]
    if isinstance(reward, str):
        raise ValueError("a reward must be a number")
    return Step(
        read_observation(value["observation"]),
        finite_float(reward, "a reward"),
        value["done"],
        {key: _fact(key, fact) for key, fact in list(value["info"].items())[: len(_KNOWN) + _MAX_EXTRAS]},
    )


def read_text(value: object) -> str:
    """Check an action.

    Raises:
        ValueError: it is no text, or too long.
    """
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"an action must be a text of at most {_MAX_TEXT} characters, got {type(value).__name__}")
    return _encodable(value)


def read_oracle(value: object) -> str | None:
    """Check the answer of an oracle; ``None``: the environment has none."""
    return None if value is None else read_text(value)


def read_schemas(value: object) -> tuple[Mapping[str, Any], ...]:
    """Check the JSON schemas of an environment's tools.

    Raises:
        ValueError: they are no list of JSON objects, or too long.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(schema, dict) for schema in value):
        raise ValueError("tools must be a list of JSON schemas")
    return tuple(json.loads(_as_json(value, _MAX_TEXT, "the tools' schemas")))


def read_nothing(value: object) -> None:
    """Check that there is no value.

    Raises:
        ValueError: there is one.
    """
    if value is not None:
        raise ValueError("a value that was not asked for")


def plain_step(step: Step) -> dict[str, Any]:
    """Convert a step of an environment to JSON values; further facts that are no small JSON are dropped.

    Raises:
        TypeError, ValueError: it is no step, or a part has the wrong type.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step() must return a Step, got {type(step).__name__}")
    facts = {str(key): _scalar(value) for key, value in step.info.items()}
    known = {key: facts[key] for key in _KNOWN if facts.get(key) is not None}
    extras = {key: value for key, value in facts.items() if key not in _KNOWN and _is_small_json(value)}
    plain = {
        "observation": step.observation,
        "reward": finite_float(step.reward, "a reward"),
        "done": bool(step.done),
        "info": known | dict(list(extras.items())[:_MAX_EXTRAS]),
    }
    read_step(plain)
    return plain


def read_reply(message: bytes, serial: int) -> dict[str, Any]:
    """Parse a reply: ``{serial, value}``, or ``{serial, error}``.

    An error may be ``fatal``: no retry can help; or ``spoiled``: the process has used up memory or other resources.

    Raises:
        ValueError: it is none, or answers another request.
    """
    reply = json.loads(message, parse_constant=_no_constant)
    if not isinstance(reply, dict) or reply.get("serial") != serial:
        raise ValueError("a reply to no request")
    if not isinstance(reply.get("error", ""), str) or ("error" in reply) == ("value" in reply):
        raise ValueError("a reply of the wrong shape")
    return reply


Reader = Callable[[object], Any]
"""Checks the value of a reply."""


def _fact(key: str, value: Any) -> Any:
    kind = _KNOWN.get(key)
    if kind is not None and (type(value) is not kind or value < 0):
        raise ValueError(f"info['{key}'] must be of type {kind.__name__}, got {value!r:.40}")
    if kind is None and not _is_small_json(value):
        raise ValueError(f"info['{key!s:.40}'] is too long")
    return value


def _is_small_json(value: object) -> bool:
    try:
        _as_json(value, _MAX_EXTRA, "")
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _scalar(value: Any) -> Any:
    """Return the value of a scalar of numpy or torch."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _as_json(value: object, most: int, name: str) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(text) > most:
        raise ValueError(f"{name} of {len(text)} characters is longer than {most}")
    return text


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer accepts."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
