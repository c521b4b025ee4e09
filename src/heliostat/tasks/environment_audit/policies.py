"""Policies that solve nothing, and the oracle, for ``audit``.

    null      an empty action
    fixed     the same action in every turn; with tools, the same call
    echo      the text that it has just read
    random    actions that the texts show, or words; with tools, calls with random arguments of the right types
    oracle    the environment's own right action

Left out: playing them (``episodes``), and conclusions (``audit``).
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from heliostat.tasks.environments.contract import Observation
from heliostat.tasks.environments.pool import Episode

_FIXED_TEXTS = ("1", "yes", "help", "[1]", "[up]", "The answer is 42.")
_NUM_CALLS = _NUM_RIGHT = 4
_NAME = 28  # characters of an action in its policy's name
_CANDIDATE = re.compile(r"\[[^\[\]\n]{1,24}\]|`[^`\n]{1,24}`|\"[^\"\n]{1,24}\"|'[^'\n]{1,24}'|[\w.+-]+")
_QUOTES = "`\"'"
_MARKS = f"[{_QUOTES}"
_SHOWN_SHARE = 0.8  # of random actions that are among those shown, where some are
_READ_SHARE = 0.8  # of random words that are taken from the texts read so far: an environment's own words reach further
_NUM_RECENT = 400  # words that are remembered of them


@dataclass
class Situation:
    """The state in which a policy chooses its action.

    Attributes:
        texts: the prompt, and the observations read so far.
        turn: from 0.
        max_turns: turns of the episode.
        tools: JSON schemas of the environment's tools; empty if it has none.
        rng: the policy's own random numbers.
    """

    episode: Episode
    texts: list[str]
    max_turns: int
    tools: Sequence[Mapping[str, Any]]
    rng: random.Random
    turn: int = field(default=0)


Policy = Callable[[Situation], "str | Future[str]"]
"""Chooses the text of the next turn."""


def null(situation: Situation) -> str:
    """Return an empty action."""
    return ""


def echo(situation: Situation) -> str:
    """Return the text that was read last."""
    return next((text for text in reversed(situation.texts) if text), "")


def oracle(situation: Situation) -> Future[str]:
    """Ask the environment for a right action."""
    return situation.episode.oracle()


def fixed_policies(tools: Sequence[Mapping[str, Any]], right: Sequence[str] = ()) -> dict[str, Policy]:
    """Return policies that repeat one action in every turn of every problem.

    Args:
        tools: one call of each of the first few is repeated.
        right: actions that were right somewhere; the most frequent ones are repeated.
    """
    calls = [random_call([tool], random.Random(0), ["1"]) for tool in tools[:_NUM_CALLS]]
    common = [action for action, _ in Counter(right).most_common(_NUM_RIGHT)]
    actions = dict.fromkeys([*common, *calls, *_FIXED_TEXTS])
    return {f"fixed: {_short(action, number)}": _repeat(action) for number, action in enumerate(actions)}


def wander(situation: Situation) -> str:
    """Return a random action.

    With tools it is a random call, and in the last turn one word as an answer. Without tools it is one of the actions
    that the texts show in brackets or quotes, like ``[up]`` or ``[3 2]``, sometimes with other digits, or else words.
    """
    rng, words = situation.rng, _words(situation)
    is_last = situation.turn == situation.max_turns - 1
    if situation.tools and not is_last:
        return random_call(situation.tools, rng, words)
    shown = [word.strip(_QUOTES) for word in words if word[0] in _MARKS]
    if shown and not situation.tools and rng.random() < _SHOWN_SHARE:
        action = rng.choice(shown)
        return re.sub(r"\d", lambda _: rng.choice(string.digits), action) if rng.random() < 0.5 else action
    return " ".join(_word(rng, words) for _ in range(1 if is_last else rng.randint(1, 3)))


def repeat_actions(actions: Sequence[str]) -> Policy:
    """Return a policy that repeats the actions of another episode."""
    return lambda situation: actions[situation.turn]


def random_call(tools: Sequence[Mapping[str, Any]], rng: random.Random, words: Sequence[str]) -> str:
    """Write a call of one of the tools, with arguments that fit its JSON schema, in the JSON form."""
    declared = rng.choice(tools)
    function = declared.get("function", declared)
    properties = function.get("parameters", {}).get("properties", {})
    arguments = {name: _value(schema, rng, words) for name, schema in properties.items()}
    return f"<tool_call>{json.dumps({'name': function.get('name', ''), 'arguments': arguments})}</tool_call>"


def text_of(observation: Observation) -> str:
    """Return an observation as one text."""
    if isinstance(observation, str):
        return observation
    return "\n".join(str(message.get("content") or "") for message in observation)


def _repeat(text: str) -> Policy:
    return lambda situation: text


def _words(situation: Situation) -> list[str]:
    found = [word for text in situation.texts for word in _CANDIDATE.findall(text)]
    return list(dict.fromkeys(reversed(found)))[:_NUM_RECENT]


def _word(rng: random.Random, words: Sequence[str]) -> str:
    if words and rng.random() < _READ_SHARE:
        return rng.choice(words).strip(_QUOTES) or "?"
    letters = string.ascii_lowercase if rng.random() < 0.5 else string.digits
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 5)))


def _value(schema: Mapping[str, Any], rng: random.Random, words: Sequence[str]) -> Any:
    """Draw a JSON value of a schema's type."""
    if "enum" in schema:
        return rng.choice(list(schema["enum"]))
    if "anyOf" in schema:
        return _value(rng.choice(list(schema["anyOf"])), rng, words)
    kind = schema.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    items = schema.get("prefixItems") or [schema.get("items", {})] * rng.randint(0, 3)
    drawn: dict[str, Callable[[], Any]] = {
        "string": lambda: _word(rng, words),
        "integer": lambda: rng.randint(-10, 100),
        "number": lambda: round(rng.uniform(-10, 100), 2),
        "boolean": lambda: rng.random() < 0.5,
        "array": lambda: [_value(item, rng, words) for item in items],
        "object": lambda: {name: _value(inner, rng, words) for name, inner in schema.get("properties", {}).items()},
        "null": lambda: None,
    }
    return drawn.get(kind, drawn["string"])()


def _short(text: str, number: int) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _NAME else f"{line[: _NAME - 4]}... {number}")
