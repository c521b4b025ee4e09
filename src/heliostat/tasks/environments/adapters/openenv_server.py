"""A server that speaks the protocol of OpenEnv, addressed as ``openenv+http://host:port``.

One episode is one WebSocket session on ``/ws``, in JSON:

    {"type": "reset", "data": {"seed": ..., columns of the row}}
    {"type": "step", "data": action}
    -> {"type": "observation", "data": {"observation": {...}, "reward": number or null, "done": bool}}
    -> {"type": "error", "data": {"message": ..., "code": ...}}

``/schema`` names the fields of an action. Where the server is one of tools (MCP), turns call them as all tools are
called (``tool_calls``), and a turn without a call is the final answer.

Source: OpenEnv 0.10. **Limits.** A reward of null is none, never 0. Servers hold one session by default
(``max_concurrent_envs``), and answer with an error above that, which fails the episode.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from heliostat.extras import require
from heliostat.tasks.environments.contract import Environment, Step
from heliostat.tasks.environments.tool_calls import ToolCall, parse_calls
from heliostat.tasks.environments.tools import final_answer

PREFIX = "openenv+"

_RESULT = ("reward", "done", "metadata")


class ServerError(RuntimeError):
    """The server answered with an error."""

    def __init__(self, url: str, data: Mapping[str, Any]) -> None:
        self.code = str(data.get("code", ""))
        details = f": {json.dumps(data['errors'], default=str)[:200]}" if data.get("errors") else ""
        super().__init__(f"the OpenEnv server at {url} says {self.code}: {data.get('message', '')}{details}")


class OpenEnvServer(Environment):
    """Episodes on an OpenEnv server.

    Args:
        url: of the server, ``http://`` or ``https://``.
        action_field: field of the action that takes a turn's text; empty: its only required field. A turn that is a
            JSON object is an action by itself.
        observation_field: field of the observation that the model reads; empty: the only text in it, else all of it as
            JSON.
        calls: form of tool calls (``tool_calls``).
        answer_timeout_s: wait for an answer, in seconds.
    """

    def __init__(
        self,
        url: str,
        action_field: str = "",
        observation_field: str = "",
        calls: str = "auto",
        answer_timeout_s: float = 60.0,
    ) -> None:
        require(f"the environment '{PREFIX}{url}'", "environments", "httpx2", "wsproto")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url = '{url}': must begin with http:// or https://")
        self._url = url.rstrip("/")
        self._action_field = action_field
        self._observation_field = observation_field
        self._calls = calls
        self._timeout_s = answer_timeout_s
        self._open = contextlib.ExitStack()
        self._session: Any = None
        self._action_schema: Mapping[str, Any] | None = None
        self._tools: list[dict[str, Any]] = []

    def reset(self, problem: Mapping[str, Any], seed: int) -> str:
        """Begin a session; the server's ``reset`` takes the row's columns that it has parameters for."""
        self.close()
        self._connect()
        row = json.loads(json.dumps(dict(problem), default=str))
        result = self._ask("reset", row | {"seed": seed % 2**31})
        if self._is_of_tools():
            listed = self._ask("step", {"type": "list_tools"})["observation"].get("tools", [])
            self._tools = [_as_schema(tool) for tool in listed]
        return self._read(result["observation"])

    def step(self, action: str) -> Step:
        return self._step_tools(action) if self._is_of_tools() else self._step_text(action)

    def tools(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the server's tools, once an episode has begun."""
        return self._tools

    def close(self) -> None:
        """End the session, which the server forgets."""
        if self._session is not None:
            with contextlib.suppress(Exception):  # the server may have closed it
                self._session.send_text(json.dumps({"type": "close"}))
        self._session = None
        self._open.close()

    def _step_text(self, action: str) -> Step:
        try:
            result = self._ask("step", self._as_action(action))
        except ServerError as error:
            if error.code != "VALIDATION_ERROR":
                raise
            return Step("error: invalid action", info={"calls": 1, "errors": 1, "invalid": True})
        info = {"calls": 1, "errors": 0}
        return Step(self._read(result["observation"]), _as_reward(result["reward"]), bool(result["done"]), info)

    def _step_tools(self, action: str) -> Step:
        names = [tool["function"]["name"] for tool in self._tools]
        calls = parse_calls(action, names, self._calls)
        if not calls:
            return final_answer()
        messages: list[dict[str, str]] = []
        rewards: list[float] = []
        num_errors, is_over = 0, False
        for call in calls:
            content, is_error, reward, is_over = self._call(call)
            messages.append({"role": "tool", **({"name": call.name} if call.name else {}), "content": content})
            rewards += [] if reward is None else [reward]
            num_errors += is_error
            if is_over:
                break
        is_invalid = any(call.problem for call in calls)
        info = {"calls": len(messages), "errors": num_errors, "invalid": is_invalid}
        return Step(messages, sum(rewards) if rewards else None, is_over, info)

    def _call(self, call: ToolCall) -> tuple[str, bool, float | None, bool]:
        """Return a call's result as text, whether it is an error, its reward, and whether the episode is over."""
        named = {tool["function"]["name"]: tool["function"]["parameters"] for tool in self._tools}
        if call.problem or call.name not in named:
            problem = call.problem or f"no tool '{call.name[:40]}'; there are: {', '.join(named)}"
            return f"error: {problem}", True, None, False
        names = list(named[call.name].get("properties", {}))
        arguments = dict(zip(names, call.positional, strict=False)) | dict(call.arguments)
        result = self._ask("step", {"type": "call_tool", "tool_name": call.name, "arguments": arguments})
        said = result["observation"]
        failure = said.get("error")
        content = f"error: {_message(failure)}" if failure else _tool_text(said.get("result"))
        return content, bool(failure), _as_reward(result["reward"]), bool(result["done"])

    def _as_action(self, text: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(text)
            if isinstance(said, dict):
                return said
        return {self._action_field or self._only_required_field(): text.strip()}

    def _only_required_field(self) -> str:
        schema = self._action_schema or {}
        required = [name for name in schema.get("required", []) if name != "metadata"]
        if len(required) != 1:
            fields = ", ".join(schema.get("properties", {}))
            raise ValueError(f"actions of {self._url} have the fields {fields}; name one with action_field")
        return str(required[0])

    def _is_of_tools(self) -> bool:
        """Return whether the server's actions are calls of tools."""
        properties = (self._action_schema or {}).get("properties", {})
        return "tool_name" in properties or properties.keys() <= {"metadata"}

    def _read(self, observation: Mapping[str, Any]) -> str:
        if self._observation_field:
            return str(observation[self._observation_field])
        shown = {name: value for name, value in observation.items() if name not in _RESULT and value is not None}
        texts = [value for value in shown.values() if isinstance(value, str)]
        if not shown:
            return ""
        return texts[0] if len(shown) == len(texts) == 1 else json.dumps(shown, ensure_ascii=False)

    def _connect(self) -> None:
        import httpx2

        client = self._open.enter_context(httpx2.Client(timeout=self._timeout_s, trust_env=False))
        if self._action_schema is None:
            self._action_schema = client.get(f"{self._url}/schema").raise_for_status().json()["action"]
        address = "ws" + self._url.removeprefix("http") + "/ws"
        self._session = self._open.enter_context(client.websocket(address, keepalive_ping_interval_seconds=None))

    def _ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Send one message and return the ``data`` of its answer.

        Raises:
            ServerError: the answer is an error.
        """
        self._session.send_text(json.dumps({"type": kind, "data": data}))
        answer = self._session.receive_json(timeout=self._timeout_s)
        if answer.get("type") == "error":
            raise ServerError(self._url, answer.get("data", {}))
        answered: dict[str, Any] = answer["data"]
        return answered


def _as_reward(value: Any) -> float | None:
    return None if value is None else float(value)


def _as_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return an MCP tool as the JSON schema of a function."""
    parameters = tool.get("input_schema") or {"type": "object", "properties": {}}
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": function}


def _message(failure: Any) -> str:
    return " ".join(str(failure.get("message", failure) if isinstance(failure, Mapping) else failure).split())[:200]


def _tool_text(result: Any) -> str:
    """Return the result of an MCP tool as text: its ``data``, its texts, or all of it as JSON."""
    if isinstance(result, Mapping):
        if result.get("data") is not None:
            result = result["data"]
        elif isinstance(result.get("content"), list):
            return "\n".join(str(part.get("text", part)) for part in result["content"])
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
