"""The mark that a run leaves on the weights of its server, by which two runs on one server find each other.

A mark is the server's own name of its weights, and every sync sets a new one. A run that reads another one has lost
the server: to another run, whose mark it is, or because the server was started anew.

Left out: runs on other machines that come later (they take the server, and the run that had it stops).
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from dataclasses import dataclass, field

from heliostat.printed import visible_line
from heliostat.rollout.server.client import Server, ServerError

_MARK = re.compile(r"heliostat/(?P<host>[^/]*)/(?P<process>\d+)/[0-9a-f]+/\d+")


def _host() -> str:
    return platform.node().replace("/", "-")


def _own_start() -> str:
    return f"heliostat/{_host()}/{os.getpid()}/{secrets.token_hex(4)}/"


@dataclass(slots=True)
class Marks:
    """The marks of one user of a server.

    Attributes:
        current: left by the last sync, which may have failed; empty before the first one.
    """

    current: str = ""
    _start: str = field(default_factory=_own_start)
    _count: int = 0

    def renew(self) -> str:
        """Make a new mark the current one, and return it."""
        self._count += 1
        self.current = f"{self._start}{self._count}"
        return self.current

    def is_own(self, version: str) -> bool:
        """Return whether a sync of this user left the mark."""
        return version.startswith(self._start)


def is_marked(version: str) -> bool:
    """Return whether any run left this mark."""
    return _MARK.fullmatch(version) is not None


def refuse_other_run(server: Server, version: str) -> None:
    """Refuse a server whose weights are those of another run that is still there, as far as this machine can tell.

    Raises:
        ServerError: another process of this machine is alive and has put its weights on the server.
    """
    match = _MARK.fullmatch(version)
    if match is None or match["host"] != _host():
        return
    process = int(match["process"])
    if process != os.getpid() and _is_alive(process):
        raise ServerError(
            f"rollout server {server.url} is in use: process {process} of this machine has put its weights there; give "
            "each run a server of its own, or end that process"
        )


def lost_server(server: Server, version: str) -> ServerError:
    """Return the error of a run whose weights are no longer those of the server."""
    match = _MARK.fullmatch(version)
    if match is None:
        whose = f"other weights than this run's ('{visible_line(version)[:40]}'): it was started anew or reloaded"
    else:
        whose = f"the weights of another run (process {match['process']} on {visible_line(match['host'])})"
    return ServerError(
        f"rollout server {server.url} has {whose}, and completions of this run may come from them; give each run a "
        "server of its own, then continue this one"
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
