"""JSON over HTTP with one server: a deadline for every answer, retries where they can help, one sentence where not.

Requests run in the event loop of a background thread, and callers (threads, scripts, notebooks) wait for them. There, a
deadline covers a whole attempt, however slowly its bytes come, and any thread can cancel a request in any phase of it.
A blocking client offers both for single reads only.

Only the recipe's URL is ever contacted: redirects are refused and proxy variables ignored. The key comes from the
environment and stands in no message.

Left out: the requests themselves (``completions``, ``weight_sync``), streaming, and several servers (the URL of a
balancer is one server).
"""

from __future__ import annotations

import asyncio
import functools
import http
import json
import os
import ssl
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heliostat.extras import require
from heliostat.printed import visible_line
from heliostat.rollout.completions import SamplingStopped

if TYPE_CHECKING:
    import httpx2

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be different next time."""

MAX_ANSWER = 1 << 28
"""Bytes of one answer that are read, at most; a group of completions with its log-probabilities takes a few million."""

MAX_PAUSE_S = 10.0


class ServerError(RuntimeError):
    """The rollout server cannot be used as it is.

    Attributes:
        status: of the HTTP answer that says so; 0: there is none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Transient(Exception):
    """A failure of one attempt that the next one may not meet."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A complete answer; ``location`` is where a redirect points."""

    status: int
    text: str
    location: str | None


def _new_client() -> httpx2.AsyncClient:
    """Create a client that opens one connection per request and leaves timeouts to the event loop.

    Raises:
        ConfigError: httpx2 is not installed.
    """
    require("sampling from a server", "server", "httpx2")
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    context = ssl.create_default_context()
    return httpx2.AsyncClient(verify=context, timeout=None, limits=limits, trust_env=False, follow_redirects=False)


@dataclass(frozen=True)
class Server:
    """One HTTP server.

    Attributes:
        url: scheme, host, port and optionally a path prefix.
        timeout_s: wall seconds for one attempt, from connecting to the last byte.
        num_retries: further attempts after a failure that may pass.
        api_key: sent as a bearer token; empty: none.
        key_name: the environment variable of the key, named where the server refuses it.
        title, url_setting: the server's kind and the setting of its address, as messages name them.
        first_pause_s: pause before the first retry; it doubles each time, up to ``MAX_PAUSE_S``.

    Raises:
        ConfigError: httpx2 is not installed.
    """

    url: str
    timeout_s: float = 600.0
    num_retries: int = 3
    api_key: str = field(default="", repr=False)
    first_pause_s: float = 0.5
    key_name: str = "VLLM_API_KEY"
    title: str = "rollout server"
    url_setting: str = "rollout.server_url"
    _client: httpx2.AsyncClient = field(default_factory=_new_client, init=False, repr=False, compare=False)
    _aborted: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)
    _pending: set[Future[_Answer]] = field(default_factory=set, init=False, repr=False, compare=False)

    def abort(self) -> None:
        """Cancel every request, from any thread and for good; callers that wait for one get ``SamplingStopped``."""
        self._aborted.set()
        for future in list(self._pending):
            future.cancel()

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET; see ``post``."""
        return self._ask("GET", path, None, frozenset(), True, self.num_retries)

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        final: frozenset[int] = frozenset(),
        is_json: bool = True,
        once: bool = False,
    ) -> Any:
        """Return the JSON answer to a POST, ``None`` where it is empty.

        Args:
            final: statuses that are not tried again here, although they may be elsewhere.
            is_json: whether the answer is JSON; of another one the text is returned.
            once: whether nothing is tried again, because a second attempt would meet another state of the server.

        Raises:
            ServerError: no usable answer after all attempts, or one that says the request is wrong.
            SamplingStopped: the requests were cancelled by ``abort``.
        """
        return self._ask("POST", path, body, final, is_json, 0 if once else self.num_retries)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        final: frozenset[int],
        is_json: bool,
        num_retries: int,
    ) -> Any:
        # Not the library's own retries: an answer that is not JSON is tried again too, and abort() ends the pauses.
        payload = None if body is None else json.dumps(body).encode()
        reason = ""
        for attempt in range(num_retries + 1):
            try:
                return self._content(path, self._wait_for(self._attempt(method, path, payload)), final, is_json)
            except _Transient as error:
                reason = self._hidden(shortened(str(error)))
            if attempt < num_retries:
                self._aborted.wait(min(MAX_PAUSE_S, self.first_pause_s * 2**attempt))
        if self._aborted.is_set():
            raise SamplingStopped
        raise ServerError(
            f"{self.title} {self.url}{path} failed {num_retries + 1} times, last: {reason}; see whether it runs "
            "and what it logs, then continue the run"
        )

    def _wait_for(self, attempt: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Run an attempt in the event loop's thread and wait for its answer in this one."""
        future = asyncio.run_coroutine_threadsafe(attempt, _event_loop())
        self._pending.add(future)
        try:
            if self._aborted.is_set():  # before abort() could find the request
                future.cancel()
            return future.result()
        except CancelledError:
            raise SamplingStopped from None
        finally:
            future.cancel()  # needed if this thread was interrupted; no effect otherwise
            self._pending.discard(future)

    async def _attempt(self, method: str, path: str, payload: bytes | None) -> _Answer:
        import httpx2

        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = self._client.stream(method, self.url + path, content=payload, headers=headers)
        try:
            async with asyncio.timeout(self.timeout_s), request as response:
                text = (await self._body(path, response)).decode("utf-8", errors="replace")
                return _Answer(response.status_code, text, response.headers.get("location"))
        except TimeoutError:
            raise _Transient(f"the answer was not complete after {self.timeout_s:g} s") from None
        except httpx2.TransportError as error:
            raise _Transient(_reason(error)) from error

    async def _body(self, path: str, response: httpx2.Response) -> bytes:
        import httpx2

        content = bytearray()
        try:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MAX_ANSWER:
                    raise ServerError(
                        f"{self.title} {self.url}{path} sent more than {MAX_ANSWER >> 20} MiB in one answer"
                    )
        except httpx2.TransportError as error:
            raise _Transient(f"the answer broke off: {_reason(error)}") from error
        return bytes(content)

    def _content(self, path: str, answer: _Answer, final: frozenset[int], is_json: bool) -> Any:
        """Parse an answer, or say why it is none."""
        if answer.status in RETRIED - final:
            raise _Transient(f"status {answer.status}: {shortened(answer.text)}")
        if answer.status != http.HTTPStatus.OK:
            raise ServerError(self._refusal(path, answer), answer.status)
        if not answer.text:
            return None
        if not is_json:
            return answer.text
        try:
            return json.loads(answer.text)
        except RecursionError:
            raise ServerError(f"{self.title} {self.url}{path} sent JSON that is nested too deeply") from None
        except ValueError:
            raise _Transient(f"the answer is not JSON: {shortened(answer.text)}") from None

    def _refusal(self, path: str, answer: _Answer) -> str:
        if answer.location is not None:
            where = visible_line(answer.location)
            advice = f"it points to {where}, which the recipe does not name; set {self.url_setting} to the final URL"
        elif answer.status in (401, 403):
            advice = f"the environment variable {self.key_name} holds no key that it accepts"
        else:
            advice = self._hidden(shortened(answer.text))
        return f"{self.title} {self.url}{path} answered status {answer.status}: {advice}"

    def _hidden(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start the event loop that all servers' requests run in; its daemon thread ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rollout-server", daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_event_loop.cache_clear)  # a forked child has the loop, but not its thread


def _reason(error: BaseException) -> str:
    """Say why a connection failed, in the operating system's words where there are some."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
            return os.strerror(cause.errno or 0)
        cause = cause.__cause__ or cause.__context__
    said = str(error).rstrip(".") or type(error).__name__
    return said.replace("Server disconnected", "remote end closed connection")


def shortened(text: str, size: int = 200) -> str:
    """Return the beginning of a foreign text on one line, with hidden characters made visible."""
    flat = visible_line(text[: 8 * size])
    return flat if len(flat) <= size else flat[:size] + "..."
