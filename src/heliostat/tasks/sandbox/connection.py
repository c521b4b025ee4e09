"""Exchange messages with an untrusted process, bounded in time and in size.

``multiprocessing.Connection`` waits for the rest of a message as long as it takes, and for a reader as long as it
takes: one byte of a header from a hostile or stopped process holds its caller for good. This is the caller's end, with
the same format on the line (a big-endian length, then the message), so that the other end may stay a ``Connection``.

Left out: the content of messages (``verifier_pool.worker_handle``).
"""

from __future__ import annotations

import os
import pickle
import select
import struct
import time
from multiprocessing.connection import Connection

MAX_MESSAGE = 1 << 26  # verdicts on a batch take thousands of bytes; a longer message is an attack or a mistake
_LONG = 0x7FFFFFFF  # from here on ``Connection`` writes -1 and the length in eight bytes
_PIECE = 1 << 16


class BoundedConnection:
    """One end of a connection, read and written with deadlines.

    Args:
        connection: the underlying connection; bytes that another reader took from it are lost.
        max_message: bytes of the longest message that is accepted.
    """

    def __init__(self, connection: Connection, max_message: int = MAX_MESSAGE) -> None:
        self._fd = connection.fileno()
        self._max_message = max_message
        self._buffer = bytearray()
        os.set_blocking(self._fd, False)

    def send(self, message: object, timeout_s: float) -> None:
        """Pickle and send ``message``.

        Raises:
            TimeoutError: the other end did not take all of it in time.
            OSError: the other end is gone.
        """
        payload = pickle.dumps(message)
        size = len(payload)
        header = struct.pack("!i", size) if size <= _LONG else struct.pack("!iQ", -1, size)
        left, deadline = memoryview(header + payload), time.monotonic() + timeout_s
        while left:
            if not self._wait(select.POLLOUT, deadline):
                raise TimeoutError(f"a message was not taken within {timeout_s:g} s")
            try:
                left = left[os.write(self._fd, left[: 1 << 20]) :]
            except BlockingIOError:
                continue

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next message, or ``None`` if it is incomplete after ``timeout_s``.

        Raises:
            EOFError: the other end is closed.
            ValueError: the message is longer than ``max_message``, or its header is no header.
        """
        deadline = time.monotonic() + timeout_s
        while (message := self._whole()) is None:
            if not self._wait(select.POLLIN, deadline):
                return None
            try:
                piece = os.read(self._fd, _PIECE)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError
            self._buffer += piece
        return message

    def _whole(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        (size,) = struct.unpack_from("!i", self._buffer)
        if not 0 <= size <= self._max_message:
            raise ValueError(f"a message claims {size} bytes, of at most {self._max_message}")
        if len(self._buffer) < 4 + size:
            return None
        message = bytes(self._buffer[4 : 4 + size])
        del self._buffer[: 4 + size]
        return message

    def _wait(self, event: int, deadline: float) -> bool:
        poller = select.poll()
        poller.register(self._fd, event)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1e3))
