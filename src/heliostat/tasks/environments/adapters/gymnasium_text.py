"""Gymnasium environments with actions that can be written as text.

    reset(seed=...) -> (observation, info)
    step(action) -> (observation, reward, terminated, truncated, info)

A space of texts takes the turn as it is; every other space takes a Python literal, like ``2`` or ``[0, 1]``. An action
outside the space is an observation that says so, and the environment is not stepped.

Source: gymnasium 1.4. **Limits.** Observations that are not text are shown as ``str`` shows them.
"""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Mapping
from typing import Any

from heliostat.tasks.environments.adapters.registered import NotRegistered, Registered
from heliostat.tasks.environments.adapters.signatures import base_packages, by_position, method_parameters
from heliostat.tasks.environments.contract import Environment, Step

PREFIX = "gymnasium/"


def matches(subject: Any) -> bool:
    """Return whether a class or an object is gymnasium's, or has its ``reset(seed, options)`` and ``step``."""
    reset, step = (method_parameters(subject, name) for name in ("reset", "step"))
    if reset is None or step is None:
        return False
    return "gymnasium" in base_packages(subject) or (
        "seed" in reset and by_position(reset)[:1] in ([], ["seed"]) and reset.keys() <= {"seed", "options"}
    )


def find(name: str) -> Registered:
    """Find a registered environment by its name.

    Raises:
        ImportError: gymnasium is not installed.
        NotRegistered: no environment has this id.
    """
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    module, _, registered = name.rpartition(":")
    if module:
        importlib.import_module(module)  # it registers its environments
    if registered not in gymnasium.registry:
        raise NotRegistered(sorted(gymnasium.registry))
    entry: Any = gymnasium.registry[registered].entry_point
    declares = load_env_creator(entry) if isinstance(entry, str) else entry

    def make(**settings: Any) -> Any:
        return gymnasium.make(name, **settings)

    return Registered(make, declares, frozenset(gymnasium.registry[registered].kwargs))


class GymnasiumText(Environment):
    """An object of a gymnasium class."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def reset(self, problem: Mapping[str, Any], seed: int) -> str:
        """Begin an episode; a column ``options`` of the row goes to the environment's ``reset``."""
        options = {"options": problem["options"]} if "options" in problem else {}
        observation, _ = self._wrapped.reset(seed=seed % 2**31, **options)
        return str(observation)

    def step(self, action: str) -> Step:
        try:
            taken = read_action(getattr(self._wrapped, "action_space", None), action.strip())
        except ValueError as error:
            return Step(f"error: {error}", info={"calls": 1, "errors": 1, "invalid": True})
        observation, reward, terminated, truncated, info = self._wrapped.step(taken)
        success = {"success": bool(info["is_success"])} if "is_success" in info else {}
        is_over = bool(terminated or truncated)
        return Step(str(observation), _finite(reward), is_over, info={"calls": 1, "errors": 0, **success})

    def close(self) -> None:
        self._wrapped.close()


def read_action(space: Any, text: str) -> Any:
    """Return the action of a space that ``text`` writes.

    Raises:
        ValueError: it writes none.
    """
    if space is None:
        return text
    action: Any = text
    if type(space).__name__ != "Text":
        try:
            action = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"the action must be in {str(space)[:80]}") from None
        if isinstance(action, list | float) and getattr(space, "dtype", None) is not None:
            action = _as_array(action, space)
    if not space.contains(action):
        raise ValueError(f"the action must be in {str(space)[:80]}")
    return action


def _as_array(action: Any, space: Any) -> Any:
    import numpy as np  # gymnasium has loaded it

    try:
        return np.asarray(action, dtype=space.dtype)
    except (ValueError, TypeError):
        raise ValueError(f"the action must be in {str(space)[:80]}") from None


def _finite(reward: Any) -> float:
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"the environment gave the reward {value}")
    return value
