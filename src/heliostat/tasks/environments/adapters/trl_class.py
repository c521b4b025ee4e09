"""Classes written for TRL's ``environment_factory``.

    reset(**row) -> str | None          the first observation
    every other public method           a tool, if it has types and a docstring
    get_reward() -> float               optional

Source: TRL 1.16, ``GRPOTrainer(environment_factory=...)``.

**Limits.** TRL asks for the reward once, when a rollout is complete. Here ``get_reward`` is asked after every turn and
the turn's reward is its change, so that the rewards of an episode that a limit ends also sum to the class's reward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliostat.tasks.environments.adapters.signatures import method_parameters
from heliostat.tasks.environments.contract import Environment, Step
from heliostat.tasks.environments.tool_schemas import schema_of
from heliostat.tasks.environments.tools import ToolBox, final_answer, finished

_OWN = ("reset", "get_reward")


def matches(subject: Any) -> bool:
    """Return whether a class or an object has ``reset`` and at least one method that can be a tool."""
    return method_parameters(subject, "reset") is not None and bool(_tool_names(subject))


def _tool_names(subject: Any) -> list[str]:
    """Return the public methods with types and a docstring, in alphabetical order, as TRL lists them."""
    cls = subject if isinstance(subject, type) else type(subject)
    public = [name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]
    return [name for name in public if name not in _OWN and _is_tool(cls, name)]


def _is_tool(cls: type, name: str) -> bool:
    function = getattr(cls, name)
    try:
        schema_of(function.__get__(object()))  # bound, so that its signature has no self
    except ValueError:
        return False
    return True


class TRLClass(Environment):
    """An object of a TRL class.

    Args:
        wrapped: the object.
        tools: functions that the model may call besides the object's methods.
        calls: form of a call (``tool_calls``).
    """

    def __init__(self, wrapped: Any, tools: Sequence[Callable[..., Any]] = (), calls: str = "auto") -> None:
        self._wrapped = wrapped
        self._box = ToolBox([*tools, *(getattr(wrapped, name) for name in _tool_names(wrapped))], calls)
        self._rewarded = 0.0

    def reset(self, problem: Mapping[str, Any], seed: int) -> str | None:
        """Give the row's columns to the class's ``reset``; one without ``**kwargs`` gets those that it names."""
        self._rewarded = 0.0
        parameters = method_parameters(self._wrapped, "reset") or {}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        row = {name: value for name, value in problem.items() if takes_all or name in parameters}
        first = self._wrapped.reset(**row)
        if first is not None and not isinstance(first, str):
            raise TypeError(f"reset returned {type(first).__name__}, expected a text or None")
        return first

    def step(self, action: str) -> Step:
        answered = self._box.answer(action)
        reward = self._new_reward()
        if answered is None:
            return final_answer(reward)
        return Step(answered.observation, reward, info=answered.info)

    def tools(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the class's methods and of the added tools."""
        return self._box.schemas

    def _new_reward(self) -> float | None:
        """Return the change of the class's reward since the turn before."""
        if not hasattr(self._wrapped, "get_reward"):
            return None
        reward = finished(self._wrapped.get_reward())
        if reward is None:
            return None
        change = float(reward) - self._rewarded
        self._rewarded = float(reward)
        return change
