"""JSON over HTTP with one server: a deadline for every answer, retries where they can help, one sentence where not.

Nothing but the recipe's URL is ever contacted: redirects are refused and proxy variables ignored. The key comes from
the environment and stands in no message.

Left out: what is asked (``rollout.vllm``), streaming, and several servers (a balancer's URL is one server).
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from heliostat.printed import visible_line
from heliostat.rollout.drafts import SamplingStopped

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be different next time."""

MAX_ANSWER = 1 << 28
"""Bytes of one answer that are read, at most; a group of completions with its log-probabilities takes a few million."""


class ServerError(RuntimeError):
    """The rollout server cannot be used as it is."""


class _Transient(Exception):
    """A failure of one attempt that the next one may not meet."""


@dataclass(frozen=True)
class Server:
    """One HTTP server.

    Attributes:
        url: scheme, host, port and optionally a path prefix.
        timeout_s: wall seconds for one attempt, from connecting to the last byte.
        num_retries: further attempts after a failure that may pass.
        api_key: sent as a bearer token; empty: none.
        first_pause_s: pause before the first retry; it doubles each time, up to 10 s.
    """

    url: str
    timeout_s: float = 600.0
    num_retries: int = 3
    api_key: str = field(default="", repr=False)
    first_pause_s: float = 0.5
    _aborted: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)
    _open: set[socket.socket] = field(default_factory=set, init=False, repr=False, compare=False)

    def abort(self) -> None:
        """Break off every request, from any thread and for good; what waits for an answer gets ``SamplingStopped``."""
        self._aborted.set()
        for sock in list(self._open):
            _shut(sock)

    def get(self, path: str) -> Any:
        """The JSON answer to a GET; see ``post``."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a POST, ``None`` where it is empty.

        Raises:
            ServerError: no usable answer after all attempts, or one that says the request is wrong.
            SamplingStopped: the requests were broken off.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        for attempt in range(self.num_retries + 1):
            if self._aborted.is_set():
                raise SamplingStopped
            try:
                return self._attempt(method, path, body)
            except (_Transient, OSError, http.client.HTTPException) as error:
                reason = shortened(str(error)) or type(error).__name__
                if attempt < self.num_retries:
                    self._aborted.wait(min(10.0, self.first_pause_s * 2**attempt))
        if self._aborted.is_set():
            raise SamplingStopped
        raise ServerError(
            f"rollout server {self.url}{path} failed {self.num_retries + 1} times, last: {self._hidden(reason)}; see "
            "whether it runs and what it logs, then continue the run"
        )

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.timeout_s
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            payload = None if body is None else json.dumps(body)
            connection.connect()
            with self._abortable(connection.sock), _closed_at(connection.sock, deadline):
                connection.request(method, parts.path.rstrip("/") + path, payload, headers)
                return self._answer(connection, path, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() < deadline:
                raise
            raise self._late() from error
        finally:
            connection.close()

    @contextmanager
    def _abortable(self, sock: socket.socket) -> Iterator[None]:
        self._open.add(sock)
        try:
            if self._aborted.is_set():
                raise SamplingStopped
            yield
        finally:
            self._open.discard(sock)

    def _answer(self, connection: http.client.HTTPConnection, path: str, deadline: float) -> Any:
        sock = connection.sock  # the response may take it away from the connection
        sock.settimeout(max(1e-3, deadline - time.monotonic()))
        response = connection.getresponse()
        pieces, size = [], 0
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER:
                raise ServerError(
                    f"rollout server {self.url}{path} sent more than {MAX_ANSWER >> 20} MiB in one answer"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late()
            if response.fp is not None:
                sock.settimeout(left)
        if time.monotonic() >= deadline:  # shut down by us: what ends in its headers looks like an empty answer
            raise self._late()
        if response.length:
            raise _Transient(f"the answer broke off {response.length} bytes before its end")
        text = b"".join(pieces).decode("utf-8", errors="replace")
        if response.status in RETRIED:
            raise _Transient(f"status {response.status}: {shortened(text)}")
        if response.status != http.HTTPStatus.OK:
            raise ServerError(self._refusal(path, response.status, text, response.getheader("Location")))
        if not text:
            return None
        try:
            return json.loads(text)
        except RecursionError:
            raise ServerError(f"rollout server {self.url}{path} sent JSON that is nested too deeply") from None
        except ValueError:
            raise _Transient(f"the answer is not JSON: {shortened(text)}") from None

    def _late(self) -> _Transient:
        return _Transient(f"the answer was not complete after {self.timeout_s:g} s")

    def _refusal(self, path: str, status: int, text: str, location: str | None) -> str:
        if location is not None:
            where = visible_line(location)
            advice = f"it points to {where}, which the recipe does not name; set rollout.server_url to the final URL"
        elif status in (401, 403):
            advice = "the environment variable VLLM_API_KEY holds no key that it accepts"
        else:
            advice = self._hidden(shortened(text))
        return f"rollout server {self.url}{path} answered status {status}: {advice}"

    def _hidden(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


@contextmanager
def _closed_at(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Shut a connection down at the deadline: a timeout of its own begins anew with every byte, also of the headers."""
    ended = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [sock])
    ended.daemon = True
    ended.start()
    try:
        yield
    finally:
        ended.cancel()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself just now
        sock.shutdown(socket.SHUT_RDWR)


def shortened(text: str, size: int = 200) -> str:
    """The beginning of a foreign text on one line, visible."""
    flat = visible_line(text[: 8 * size])
    return flat if len(flat) <= size else flat[:size] + "..."
