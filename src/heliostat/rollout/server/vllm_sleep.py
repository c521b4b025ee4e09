"""The sleep of a vLLM server that shares its GPU with the trainer: it gives memory back while the trainer trains.

    sleep --> (the trainer trains) --> wake weights --> reload --> wake caches

At level 1 the weights wait in host memory and come back as they were. At level 2 they are dropped, and the server
computes nonsense until it gets weights. A request to a sleeping server waits until it is woken.

A server can be found asleep at any start, since a killed run leaves it so. Therefore every sync asks it first.

Left out: the moment to sleep (``weight_sync``), and SGLang, which does not tell whether its memory is released and ends
if memory is resumed that was not.
"""

from __future__ import annotations

import http
from dataclasses import dataclass

from heliostat.config.sections.rollout import DROPS_WEIGHTS
from heliostat.rollout.server.answers import Sleeping, Woken, parsed
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.vllm_requests import get_dev, post_dev

TITLE = "vLLM 0.32"
_FAILED = frozenset({http.HTTPStatus.INTERNAL_SERVER_ERROR})


@dataclass(frozen=True, slots=True)
class VllmSleep:
    """A level of sleep.

    Attributes:
        level: 1: weights move to host memory; 2: they are dropped.
    """

    level: int

    @property
    def drops_weights(self) -> bool:
        """Return whether the weights must be sent again after it."""
        return self.level == DROPS_WEIGHTS

    def fall_asleep(self, server: Server) -> None:
        """Free the server's memory; a server that sleeps already is left as it is.

        Raises:
            ServerError: it may not sleep.
        """
        post_dev(server, f"/sleep?level={self.level}", final=_FAILED)

    def wake_up(self, server: Server) -> None:
        """Give the server its memory again.

        Raises:
            ServerError: it may still sleep.
        """
        wake_up(server)


def is_asleep(server: Server) -> bool:
    """Return whether a server sleeps, or was paused and left so.

    Raises:
        ServerError: it cannot be asked.
    """
    return parsed(server, TITLE, Sleeping, get_dev(server, "/is_sleeping")).is_sleeping


def wake_up(server: Server) -> None:
    """Wake a server if it sleeps; its weights are those of before at level 1, and nonsense at level 2."""
    if is_asleep(server):
        _wake(server, "")


def wake_weights(server: Server) -> bool:
    """Give a sleeping server the memory of its weights alone, and return whether its caches still sleep."""
    return is_asleep(server) and _wake(server, "?tags=weights") == "sleeping"


def wake_caches(server: Server) -> None:
    """Give a server the rest of its memory, after which it answers requests."""
    _wake(server, "?tags=kv_cache")


def _wake(server: Server, tags: str) -> str:
    try:
        return parsed(server, TITLE, Woken, post_dev(server, f"/wake_up{tags}", final=_FAILED)).status
    except ServerError as error:
        if error.status not in _FAILED:
            raise
        raise ServerError(
            f"{error}; it could not take its memory back, so restart it with a smaller --gpu-memory-utilization, which "
            "must leave room for the trainer's weights and optimizer, then continue the run"
        ) from None
