"""Single-player games of textarena.

    make(id); reset(num_players=1, seed=...)
    get_observation() -> (player, messages)
    step(action) -> (done, info)
    close() -> (rewards, info)

The game's observation wrappers repeat the whole conversation, or leave parts of it out, in every observation. Token ids
only append, so the messages are taken from the game below its wrappers: each once, the player's own moves left out.
Action wrappers stay.

Source: textarena 0.7. **Limits.** Games for two and more players need opponents and are refused by their own ``reset``.
A game that a limit of turns ends has no reward.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from heliostat.tasks.environments.adapters.registered import NotRegistered, Registered
from heliostat.tasks.environments.adapters.signatures import method_parameters
from heliostat.tasks.environments.contract import Environment, Step

PREFIX = "textarena/"


def matches(subject: Any) -> bool:
    """Return whether a class or an object has ``get_observation``, ``step`` and a ``reset`` of players."""
    reset = method_parameters(subject, "reset")
    others = [method_parameters(subject, name) for name in ("get_observation", "step", "close")]
    return reset is not None and "num_players" in reset and None not in others


def find(name: str) -> Registered:
    """Find a registered game by its name.

    Raises:
        ImportError: textarena is not installed.
        NotRegistered: no game has this id.
    """
    import textarena
    from textarena.envs.registration import ENV_REGISTRY

    if name not in ENV_REGISTRY:
        raise NotRegistered(sorted(ENV_REGISTRY))
    declares = ENV_REGISTRY[name].entry_point
    if isinstance(declares, str):
        module, _, cls = declares.partition(":")
        declares = getattr(importlib.import_module(module), cls)

    def make(**settings: Any) -> Any:
        return textarena.make(name, **settings)

    return Registered(make, declares, frozenset(ENV_REGISTRY[name].kwargs))


class TextArenaGame(Environment):
    """An object of a textarena game."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self._game = wrapped
        while hasattr(type(self._game), "is_wrapped_with"):  # textarena.core.Wrapper
            self._game = self._game.env

    def reset(self, problem: Mapping[str, Any], seed: int) -> str:
        self._wrapped.reset(num_players=1, seed=seed)
        return self._new_messages()

    def step(self, action: str) -> Step:
        errors_before = self._num_errors()
        is_over, _ = self._wrapped.step(action)
        if not is_over:
            is_invalid = self._num_errors() > errors_before
            counts = {"calls": 1, "errors": int(is_invalid), "invalid": is_invalid}
            return Step(self._new_messages(), info=counts)
        rewards, outcome = self._wrapped.close()
        mine = (outcome or {}).get(0, {})
        is_invalid = bool(mine.get("invalid_move"))
        reason = str(mine.get("reason", ""))
        info: dict[str, Any] = {"calls": 1, "errors": int(is_invalid), "invalid": is_invalid, "reason": reason}
        return Step(reward=None if rewards is None else float(rewards[0]), done=True, info=info)

    def _num_errors(self) -> int:
        """Return how many invalid moves in a row the game has counted."""
        return int(getattr(self._game.state, "error_count", 0))

    def _new_messages(self) -> str:
        player, messages = self._game.get_observation()
        if isinstance(messages, str):
            return messages
        return "\n".join(str(text) for sender, text, _ in messages if sender != player)
