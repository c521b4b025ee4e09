"""Plain typed Python functions as tools of an environment.

    box = ToolBox([lookup, add])
    step = box.answer('<tool_call>{"name": "lookup", "arguments": {"key": "x"}}</tool_call>')

A call that cannot be parsed, names no tool, has wrong arguments or raises is answered by one line that says so: the
model can learn from it.

Left out: the forms of a call (``tool_calls``), the schemas (``tool_schemas``), and limits on time and memory, which
belong to the process that tools run in (``pool``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliostat.nested_runs import NestedRun
from heliostat.tasks.environments.contract import Environment, Observation, Step
from heliostat.tasks.environments.tool_calls import FORMS, ToolCall, parse_calls
from heliostat.tasks.environments.tool_schemas import find_mismatch, schema_of

MAX_MESSAGE = 200
"""Characters of an exception that the model reads."""


class ToolBox:
    """Tools by name, and the answer to a turn that calls them.

    Args:
        tools: functions or bound methods with types and docstrings; coroutine functions are awaited.
        calls: form of a call: ``json``, ``python`` or ``auto`` (``tool_calls``).

    Raises:
        ValueError: a tool lacks a type or a docstring, two have one name, or ``calls`` is no form.
    """

    def __init__(self, tools: Sequence[Callable[..., Any]], calls: str = "auto") -> None:
        if calls not in FORMS:
            raise ValueError(f"calls = '{calls}': must be one of {', '.join(FORMS)}")
        self._form = calls
        self.schemas = [schema_of(tool) for tool in tools]
        self._tools: dict[str, Callable[..., Any]] = {}
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool, schema in zip(tools, self.schemas, strict=True):
            name = schema["function"]["name"]
            if name in self._tools:
                raise ValueError(f"two tools are called '{name}'; rename one")
            self._tools[name], self._parameters[name] = tool, schema["function"]["parameters"]

    def answer(self, action: str) -> Step | None:
        """Run the calls of a turn in order and return their results; ``None``: the turn calls nothing."""
        calls = parse_calls(action, self._tools, self._form)
        if not calls:
            return None
        messages: list[Mapping[str, Any]] = []
        num_errors = 0
        for call in calls:
            content, is_error = self._run(call)
            num_errors += is_error
            named = {"name": call.name} if call.name else {}
            messages.append({"role": "tool", **named, "content": content})
        is_invalid = any(call.problem for call in calls)
        return Step(messages, info={"calls": len(calls), "errors": num_errors, "invalid": is_invalid})

    def _run(self, call: ToolCall) -> tuple[str, bool]:
        """Return the result of one call as text, and whether it is an error."""
        if call.problem:
            return f"error: {call.problem}", True
        if call.name not in self._tools:
            return f"error: no tool '{call.name[:40]}'; there are: {', '.join(self._tools)}", True
        tool, parameters = self._tools[call.name], self._parameters[call.name]
        names = list(parameters["properties"])
        if len(call.positional) > len(names):
            return f"error: {call.name} takes {len(names)} arguments, not {len(call.positional)}", True
        placed = dict(zip(names, call.positional, strict=False))
        if twice := placed.keys() & call.arguments.keys():
            return f"error: {call.name}: argument '{min(twice)}' is given twice", True
        arguments = {**placed, **call.arguments}
        if problem := find_mismatch(arguments, parameters):
            return f"error: {call.name}: {problem}", True
        try:
            return str(finished(tool(**arguments))), False
        except NestedRun:
            raise
        except (Exception, SystemExit) as error:
            return f"error: {type(error).__name__}: {one_line(error)}", True


class ToolEnvironment(Environment):
    """Tools alone: a turn that calls none is the final answer, judged by the task's verifiers."""

    def __init__(self, box: ToolBox) -> None:
        self._box = box

    def reset(self, problem: Mapping[str, Any], seed: int) -> Observation | None:
        return None

    def step(self, action: str) -> Step:
        return self._box.answer(action) or final_answer()

    def tools(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the tools."""
        return self._box.schemas


class WithTools(Environment):
    """An environment whose model may also call tools: a turn without a call goes to the environment."""

    def __init__(self, environment: Any, box: ToolBox) -> None:
        self._environment = environment
        self._box = box

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)  # its own problem and oracle

    def reset(self, problem: Mapping[str, Any], seed: int) -> Observation | None:
        first: Observation | None = self._environment.reset(problem, seed)
        return first

    def step(self, action: str) -> Step:
        answered = self._box.answer(action)
        step: Step = self._environment.step(action) if answered is None else answered
        return step

    def tools(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the environment's own tools and of the added ones."""
        own = getattr(self._environment, "tools", list)
        return [*own(), *self._box.schemas]

    def close(self) -> None:
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()


def final_answer(reward: float | None = None) -> Step:
    """Build the step that ends an episode with a turn that called nothing."""
    return Step(reward=reward, done=True, info={"calls": 0, "errors": 0, "invalid": False})


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split())[:MAX_MESSAGE] or type(error).__name__


def finished(result: Any) -> Any:
    """Wait for the result of a coroutine function."""
    if not inspect.isawaitable(result):
        return result
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())
