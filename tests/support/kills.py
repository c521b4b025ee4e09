"""Kill a process at the nth thing it does to the file system: opened for writing, written, synced, renamed, removed.

Python announces most of these to audit hooks; writing and syncing it does not, so those are wrapped. What libraries
write from native code (safetensors, torch) is seen when the file is opened or renamed by Python, not in between.
"""

import os
import signal
import sys
from collections.abc import Callable

from tests.support.forks import in_child

ANNOUNCED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"}
WRAPPED = ("fsync", "write", "open")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Events:
    """Counts events while ``on``; at event ``at`` the process kills itself, with the event not yet done."""

    def __init__(self, at: int | None = None, number: int = signal.SIGKILL) -> None:
        self.at = at
        self.number = number
        self.on = False
        self.seen: list[str] = []

    def install(self) -> None:
        """From here on; for a process that ends soon, since audit hooks cannot be removed."""
        sys.addaudithook(self._hear)
        for name in ("fsync", "write"):
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def happen(self, what: str) -> None:
        if not self.on:
            return
        self.seen.append(what)
        if len(self.seen) == self.at:
            os.kill(os.getpid(), self.number)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITING and not str(path).startswith(("/dev", "/proc")):
                self.happen(f"open {path}")
        elif event in ANNOUNCED:
            self.happen(f"{event} {args[0]}")

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(descriptor: int, *rest: object) -> object:
            if descriptor > 2:
                self.happen(name)
            return real(descriptor, *rest)

        return wrapped


def count_events(work: Callable[[], object]) -> int:
    """How many events ``work`` has, counted in a process of its own."""
    receiving, sending = os.pipe()

    def counted() -> None:
        events = Events()
        events.install()
        events.on = True
        work()
        events.on = False
        os.write(sending, len(events.seen).to_bytes(4, "little"))

    child = in_child(counted)
    os.close(sending)
    with open(receiving, "rb") as file:  # noqa: PTH123 a descriptor
        num = int.from_bytes(file.read(), "little")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return num


def killed_at(event: int, work: Callable[[], object]) -> None:
    """Run ``work`` in a process that is killed at its event ``event``."""

    def doomed() -> None:
        events = Events(event)
        events.install()
        events.on = True
        work()

    code = os.waitstatus_to_exitcode(os.waitpid(in_child(doomed), 0)[1])
    assert code == -signal.SIGKILL, code
