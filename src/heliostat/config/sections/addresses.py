"""Addresses of servers in sections. Left out: asking the servers (``heliostat.rollout.server``)."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_address(key: str, url: str, key_name: str) -> None:
    """Refuse a text that is no address of a server, before ``/v1``.

    Args:
        key: the setting.
        key_name: the environment variable of the server's key.

    Raises:
        ValueError: it is no address, holds a password, or ends in ``/v1``.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{key} = '{url}' is no address; it looks like http://host:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{key} holds a password; put the key into the environment as {key_name}")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"{key} = '{url}' must end before /v1, which is added")
