"""The page of a run that is being trained, from a process of its own: it shares no lock and no state with training.

The training process takes the port, so that a refused one is known before the first step, and passes it on. The other
process has a lower priority, and its own session, so that Ctrl-C reaches the run alone. It ends with the run, also if
the run is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from heliostat.report.live.server import LINGER_S, Ended, LiveServer, PortRefused, address, listen

NICENESS = 10


class WatchedRun:
    """Context manager around a run whose page may be watched.

    Args:
        note: shows a line to the user.
        port: see ``listen``.
    """

    def __init__(self, note: Callable[[str], None], port: int | None = None) -> None:
        self.note = note
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server, after a last look of a page that is open."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=2 * LINGER_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()

    def start(self, folder: Path) -> None:
        """Serve the page of a run that begins, and print its address; a run without a page goes on."""
        try:
            with listen(self.port) as listening:
                command = [sys.executable, "-m", "heliostat.report.live", str(folder), str(listening.fileno())]
                self.process = subprocess.Popen(
                    [*command, str(os.getpid())],
                    pass_fds=[listening.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self.note(f"watch: {address(listening)}")
        except (PortRefused, OSError) as error:
            self.note(f"the run has no page to watch: {error}; heliostat watch {folder} serves one")


def serve_for_parent(folder: Path, descriptor: int, parent: int) -> None:
    """Serve on a socket that ``parent`` has opened, until it ends or asks for the end with SIGTERM."""
    os.nice(NICENESS)
    with LiveServer(folder, socket.socket(fileno=descriptor), parent) as server:
        signal.signal(signal.SIGTERM, lambda number, frame: server.end_soon())
        try:
            server.serve_forever()
        except Ended:
            return
