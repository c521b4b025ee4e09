"""Environments of skyrl-gym.

    Class(env_config=..., extras=row)     one object per episode, made with the data row
    init(prompt) -> (messages, info)      the conversation that sampling begins with
    step(action) -> {"observations": messages, "reward": float, "done": bool, "metadata": {...}}

Source: skyrl-gym 0.4.

**Limits.** ``postprocessed_action``, which would replace sampled text, is ignored: sampled tokens stay as they are. An
``init`` that rewrites the prompt, and does more than append to it, is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from heliostat.tasks.environments.adapters.registered import NotRegistered, Registered
from heliostat.tasks.environments.adapters.signatures import method_parameters
from heliostat.tasks.environments.contract import Environment, Observation, Step

PREFIX = "skyrl-gym/"
EXTRAS = "extras"
"""Parameter that takes the data row."""


def matches(subject: Any) -> bool:
    """Return whether a class or an object has ``init`` and ``step``."""
    return method_parameters(subject, "init") is not None and method_parameters(subject, "step") is not None


def find(name: str) -> Registered:
    """Find a registered environment by its name.

    Raises:
        ImportError: skyrl-gym is not installed.
        NotRegistered: no environment has this name.
    """
    import skyrl_gym
    from skyrl_gym.envs.registration import load_env_creator

    if name not in skyrl_gym.registry:
        raise NotRegistered(sorted(skyrl_gym.registry))
    entry = skyrl_gym.registry[name].entry_point
    declares = load_env_creator(entry) if isinstance(entry, str) else entry

    def make(**settings: Any) -> Any:
        return skyrl_gym.make(name, **settings)

    return Registered(make, declares, frozenset(skyrl_gym.registry[name].kwargs))


class SkyRLGym(Environment):
    """Episodes of a skyrl-gym class.

    Args:
        make: the constructor, with its settings.
        takes_row: whether it takes the data row as ``extras``.
    """

    def __init__(self, make: Callable[..., Any], takes_row: bool) -> None:
        self._make = make
        self._takes_row = takes_row
        self._wrapped: Any = None

    def reset(self, problem: Mapping[str, Any], seed: int) -> Observation | None:
        """Make the episode's object with the row, and return the messages that its ``init`` appends.

        A row without ``reward_spec`` gets one with its ``answer`` as the ground truth.
        """
        self.close()
        extras = {"extra_info": {}, "reward_spec": {"method": "rule", "ground_truth": problem.get("answer")}}
        self._wrapped = self._make(**({EXTRAS: extras | dict(problem)} if self._takes_row else {}))
        prompt = problem.get("prompt", "")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        begun, _ = self._wrapped.init(list(messages))
        if list(begun[: len(messages)]) != messages:
            raise ValueError(f"{type(self._wrapped).__name__}.init rewrites the prompt; it may only append messages")
        return list(begun[len(messages) :])

    def step(self, action: str) -> Step:
        output = self._wrapped.step(action)
        return Step(
            observation=list(output["observations"]),
            reward=float(output["reward"]),
            done=bool(output["done"]),
            info=dict(output.get("metadata") or {}),
        )

    def close(self) -> None:
        if self._wrapped is not None:
            self._wrapped.close()
        self._wrapped = None


def takes_row(constructor: Callable[..., Any]) -> bool:
    """Return whether a class or factory has the parameter ``extras``."""
    return EXTRAS in inspect.signature(constructor).parameters
