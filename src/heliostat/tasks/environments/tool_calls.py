"""Parse the tool calls in the text of a turn.

Two forms, several calls in a turn, answered in the order in which they stand:

    <tool_call>{"name": "lookup", "arguments": {"key": "x"}}</tool_call>     json: that of Hermes and Qwen
    lookup("x")                                                             python: alone on its line, literals only

``auto`` reads the first form where a turn has one, else the second.

**Limits.** In the Python form a line is a call if its name is a tool's, or if all of it parses as a call with literal
arguments. Other lines are text. Parsing decides which tool runs, never which tokens are trained on.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMS = ("auto", "json", "python")

_TAG = "<tool_call>"
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LINE = re.compile(r"^\s*([A-Za-z_]\w*)\s*\(.*\)?\s*$")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a turn asks for.

    Attributes:
        name: of the tool; empty where it could not be read.
        arguments: by name.
        positional: arguments without a name, of the Python form.
        problem: why the call could not be parsed; empty if it could.
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()
    problem: str = ""


def parse_calls(text: str, names: Collection[str], form: str = "auto") -> list[ToolCall]:
    """Return the calls in a turn, in order; empty: the turn calls nothing.

    Args:
        text: of the turn.
        names: of the tools; they tell a broken Python call from a line of text.
        form: ``json``, ``python`` or ``auto``.
    """
    if form == "json" or (form == "auto" and _TAG in text):
        return [_from_json(block) for block in _BLOCK.findall(text)]
    found = (_from_line(line, names) for line in text.splitlines())
    return [call for call in found if call is not None]


def _from_json(block: str) -> ToolCall:
    try:
        said = json.loads(block)
    except (ValueError, RecursionError) as error:
        return ToolCall(problem=f"no JSON: {_one_line(error)}")
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return ToolCall(problem='expected {"name": ..., "arguments": {...}}')
    arguments = said.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(said["name"], problem="'arguments' must be an object")
    return ToolCall(said["name"], arguments)


def _from_line(line: str, names: Collection[str]) -> ToolCall | None:
    shape = _LINE.match(line)
    if shape is None:
        return None
    name = shape[1]
    try:
        node = ast.parse(line.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("expected one call")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("'**' is no argument")
        positional = tuple(ast.literal_eval(argument) for argument in node.args)
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        return ToolCall(name, problem=f"no call: {_one_line(error)}") if name in names else None
    return ToolCall(name, arguments, positional)


def _one_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError | json.JSONDecodeError) else str(error)
    return " ".join(message.split())[:80] or type(error).__name__
