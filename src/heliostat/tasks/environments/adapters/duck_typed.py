"""Classes with this package's ``reset(problem, seed)`` and ``step(action)`` that do not derive from ``Environment``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliostat.tasks.environments.adapters.signatures import by_position, method_parameters
from heliostat.tasks.environments.contract import Environment, Observation, Step


def matches(subject: Any) -> bool:
    """Return whether ``reset`` takes a problem and a seed, by position, and there is a ``step``."""
    reset, step = (method_parameters(subject, name) for name in ("reset", "step"))
    if reset is None or step is None:
        return False
    names = by_position(reset)
    return len(names) >= 2 and names[1] == "seed" and names[0] != "num_players"


class DuckTyped(Environment):
    """Gives an object with ``reset`` and ``step`` the methods that it lacks."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)  # its problem, oracle or tools, where it has them

    def reset(self, problem: Mapping[str, Any], seed: int) -> Observation | None:
        first: Observation | None = self._wrapped.reset(problem, seed)
        return first

    def step(self, action: str) -> Step:
        step: Step = self._wrapped.step(action)
        return step

    def close(self) -> None:
        close = getattr(self._wrapped, "close", None)
        if close is not None:
            close()
