"""Find and kill every process that a worker started, including those that detached from it.

Descendants are found in three ways, because a program can escape each one alone: by process group (``setsid`` leaves
it), by parent (on Linux the worker's supervisor is a *subreaper*, which inherits orphans), and by a mark in the
environment (which survives the supervisor's death). Imports the standard library only.

**Limits**: without ``/proc`` and ``prctl`` (macOS) only the process group is found. On Linux a program escapes only if
it clears its environment, leaves its group, and kills the supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn

from heliostat.nested_runs import INSIDE

SUPERVISED = sys.platform.startswith("linux")
"""Whether helper processes have a supervisor."""

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_MAX_ROUNDS = 200  # searches for processes started while others were being ended
_TICK_S = 0.2
_PROC = Path("/proc")


def supervise(connection_fd: int) -> None:
    """Fork this interpreter: return in the worker, and stay in the supervisor that kills the worker's descendants.

    The supervisor ends with the worker's exit code, after all its descendants are gone. It kills the worker when the
    parent process ends or closes its end of ``connection_fd``.

    **Limits**: on systems other than Linux this returns at once, without a supervisor.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a stop ends this process without a traceback
    parent = os.getppid()
    if not SUPERVISED:
        return
    _prctl(_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    supervisor = os.getpid()
    worker = os.fork()
    if worker == 0:
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # the supervisor had ended before the line above
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return
    code = 1
    try:
        code = _watch(worker, parent, connection_fd)
    finally:
        _exit_as(code)


def find_descendants(supervisor: int, mark: str) -> set[int]:
    """Return the running descendants of ``supervisor``, and the processes whose environment carries ``mark``."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    entry = f"{INSIDE}={mark}".encode()
    for folder in _PROC.glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(folder.name)] = int(parent)
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except (OSError, ValueError):  # it ended meanwhile, or belongs to somebody else
            continue
    found |= {pid for pid in parents if _is_beneath(pid, supervisor, parents)}
    return found - {supervisor, os.getpid()}


def kill_descendants(supervisor: int, mark: str) -> bool:
    """Kill all descendants; returns whether there were any, so that a caller may repeat."""
    found = find_descendants(supervisor, mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _is_beneath(pid: int, supervisor: int, parents: dict[int, int]) -> bool:
    seen = set()
    while pid in parents and pid not in seen:
        seen.add(pid)
        pid = parents[pid]
        if pid == supervisor:
            return True
    return False


def _watch(worker: int, parent: int, connection_fd: int) -> int:
    """Wait for the worker or the parent to end, then kill all descendants. Returns the worker's exit code."""
    hangup = select.poll()
    hangup.register(connection_fd, 0)
    while (code := _collect(worker)) is None:
        if os.getppid() != parent or hangup.poll(0):
            os.kill(worker, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], _TICK_S)
    rounds = 0
    while kill_descendants(os.getpid(), os.environ.get(INSIDE, "-")) and rounds < _MAX_ROUNDS:
        _collect(worker)
        signal.sigtimedwait([signal.SIGCHLD], _TICK_S / 20)
        rounds += 1
    return code


def _collect(worker: int) -> int | None:
    """Reap every process that has ended; returns the worker's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)


def _exit_as(code: int) -> NoReturn:
    """Exit with ``code`` (negative: by that signal)."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process; where the system refuses, the other ways to find processes remain."""
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
