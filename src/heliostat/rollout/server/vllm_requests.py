"""Requests to vLLM's routes of its development mode, whose absence is answered with the way to start the server.

Left out: HTTP (``client``), and the routes (``vllm``, ``vllm_sleep``).
"""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from heliostat.rollout.server.client import Server, ServerError


def get_dev(server: Server, path: str) -> Any:
    """Return the JSON answer to a GET.

    Raises:
        ServerError: as in ``Server.get``, with advice if there is no such route.
    """
    try:
        return server.get(path)
    except ServerError as error:
        raise _advised(error) from None


def post_dev(
    server: Server, path: str, body: Mapping[str, Any] | None = None, *, final: frozenset[int] = frozenset()
) -> Any:
    """Return the JSON answer to a POST.

    Raises:
        ServerError: as in ``Server.post``, with advice if there is no such route.
    """
    try:
        return server.post(path, body, final=final)
    except ServerError as error:
        raise _advised(error) from None


def _advised(error: ServerError) -> ServerError:
    if error.status != http.HTTPStatus.NOT_FOUND:
        return error
    return ServerError(
        f"{error}; start it with VLLM_SERVER_DEV_MODE=1 to let weights be updated (vLLM 0.32 or newer)", error.status
    )
