"""A web server for one run folder: ``/`` is the page, ``/status.json`` the state, and there is nothing else.

It listens on the loopback interface, answers GET, serves no file, and refuses requests for another host's name, so that
no page of the web can reach it by a name of its own (DNS rebinding).

**Limits** Everybody with an account on this machine can read the page.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from heliostat.report.live.view import LiveView

HOST = "127.0.0.1"
PORT = 8475
"""Port that is tried first where none is asked for, so that a bookmark or a tunnel serves for the next run too."""
OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LINGER_S = 3.0
"""Seconds that a server outlives its run, for the last look of an open page."""
OPEN_S = 10.0
"""Seconds since its last request after which a page counts as closed."""


class PortRefused(RuntimeError):
    """The server cannot have the port; the message says why and what to do."""


class Ended(Exception):
    """The server is to end."""


def listen(port: int | None = None) -> socket.socket:
    """Listen on a port of the loopback interface.

    Args:
        port: 0 for a free one; ``None`` for ``PORT``, or a free one where that is taken.

    Raises:
        PortRefused: the port is taken, or not for this user.
    """
    try:
        return socket.create_server((HOST, PORT if port is None else port), backlog=32)
    except (OSError, OverflowError) as error:
        if port is None:
            return listen(0)
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is in use" if taken else f"cannot be used ({str(getattr(error, 'strerror', None) or error).lower()})"
        raise PortRefused(f"port {port} {why}; choose another with --port, or leave it out for a free one") from None


def address(listening: socket.socket) -> str:
    """Return the URL of the page."""
    return f"http://{HOST}:{listening.getsockname()[1]}/"


class LiveServer(ThreadingHTTPServer):
    """Serves the page of one run folder.

    Args:
        listening: from ``listen``; closed with the server.
        parent: process whose end is the end of this server, after a last look of an open page.
    """

    daemon_threads = True

    def __init__(self, folder: Path, listening: socket.socket, parent: int | None = None) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_address = listening.getsockname()
        self.view = LiveView(folder)
        self.parent = parent
        self.asked_at: float | None = None
        self.ending_at: float | None = None

    def end_soon(self) -> None:
        """End after a last look of a page that is open, or at once if none is."""
        self.ending_at = self.ending_at or time.monotonic()

    def service_actions(self) -> None:
        """End the server if it is time to; called twice a second.

        Raises:
            Ended: it is time.
        """
        if self.parent is not None and os.getppid() != self.parent:
            self.end_soon()
        if self.ending_at is None:
            return
        is_open = self.asked_at is not None and self.asked_at > self.ending_at - OPEN_S
        if not is_open or time.monotonic() > self.ending_at + LINGER_S:
            raise Ended

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a bug; a browser that closed its connection is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "heliostat"
    sys_version = ""
    timeout = 30.0
    server: LiveServer

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in OWN_NAMES and host not in OWN_NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this server answers to 127.0.0.1 and localhost alone\n")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self.server.asked_at = time.monotonic()
            page, version = self.server.view.page()
            self._answer(HTTPStatus.OK, "text/html", page, version)
        elif path == "/status.json":
            self.server.asked_at = time.monotonic()
            self._answer(HTTPStatus.OK, "application/json", self.server.view.status())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is only / and /status.json\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str, version: str = "") -> None:
        body = text.encode("utf-8")
        mark = f'"{version}"' if version else ""
        if mark and self.headers.get("If-None-Match") == mark:
            status, body = HTTPStatus.NOT_MODIFIED, b""
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if mark:
            self.send_header("ETag", mark)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for a request."""
