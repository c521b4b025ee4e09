"""Work in a process of its own: a crash, a hang or a broken device ends it alone, and its parent goes on.

The parent must not have used the GPU, since a fork of a process with a CUDA context has none.

Left out: systems without ``fork``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK_S = 0.002
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Ended:
    """The end of a process.

    Attributes:
        result: what its work returned; ``None`` if it did not return.
        fault: one line that says why it did not; empty if it did.
    """

    result: Any
    fault: str
    seconds: float


def start(work: Callable[[], Any], folder: Path) -> int:
    """Begin ``work`` in a forked process, a session of its own, whose prints go to ``folder/log``; return its id."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":  # a killed case takes the processes along that it began itself
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with (folder / "log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        (folder / "result.json").write_text(json.dumps(work()))
        code = 0
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        (folder / "fault").write_text(f"{type(error).__name__}: {lines[0]}".rstrip(": "))
    finally:
        os._exit(code)


def run(work: Callable[[], Any], folder: Path, seconds: float) -> Ended:
    """Run ``work`` apart to its end, or kill it and its children after ``seconds``; its result must fit JSON."""
    began = time.monotonic()
    child = start(work, folder)
    try:
        while time.monotonic() < began + seconds:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return _ended(status, folder, time.monotonic() - began)
            time.sleep(TICK_S)
    except BaseException:
        kill(child)
        raise
    kill(child)
    return Ended(None, f"killed after {seconds:.0f} s", time.monotonic() - began)


def _ended(status: int, folder: Path, seconds: float) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Ended(None, f"ended by {signal.Signals(-code).name}", seconds)
    fault = folder / "fault"
    if code:
        return Ended(None, fault.read_text() if fault.exists() else f"ended with code {code}", seconds)
    return Ended(json.loads((folder / "result.json").read_text()), "", seconds)


def kill(child: int) -> None:
    """Kill a process that ``start`` began, with its children."""
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
