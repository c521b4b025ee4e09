"""Call a user's reward function: build its arguments, await it, and check its result.

Asynchronous functions of one process share one event loop for the life of the process, so that a client that one call
opens (a session of aiohttp or httpx, a connection) serves the next.

Left out: finding the function (``builtin``), and checking the score (``verifier_pool.worker``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

COMPLETION_IDS = "completion_ids"
"""Parameter for the sampled token ids, as in TRL; texts that were not sampled have none."""


def single_reward(rewards: object, path: str) -> object:
    """Return the reward of one completion from a function's result for a list of one.

    Raises:
        TypeError: it returned no list (nor anything else to go through).
        ValueError: it returned more or fewer rewards than one.
    """
    if inspect.isawaitable(rewards):
        rewards = _loop().run_until_complete(_awaited(rewards))
    if isinstance(rewards, str | bytes | Mapping) or not isinstance(rewards, Iterable):
        raise TypeError(f"'{path}' returned {_described(rewards)}, expected a list with one number per completion")
    if getattr(rewards, "shape", None) == ():  # an array of numpy or torch that is one number
        raise TypeError(f"'{path}' returned a bare number, expected a list with one number per completion")
    listed = list(rewards)
    if len(listed) != 1:
        raise ValueError(f"'{path}' returned {len(listed)} rewards for 1 completion")
    return listed[0]


def _described(value: object) -> str:
    if value is None:
        return "None"
    keys = f" with {', '.join(map(repr, list(value)[:3]))}" if isinstance(value, Mapping) and value else ""
    return f"{type(value).__name__}{keys}"


async def _awaited(rewards: Awaitable[Any]) -> Any:
    return await rewards


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    import asyncio  # a third of a light worker's start

    return asyncio.new_event_loop()
