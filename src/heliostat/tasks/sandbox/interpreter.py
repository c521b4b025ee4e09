"""Start a fresh Python interpreter that runs one module of this package, with a connection to it.

Not ``multiprocessing``: its spawned children run the user's main script again, which imports torch and, without an
``if __name__`` guard, starts the whole run once more. Children get a fixed hash seed (reasoning-gym iterates over
sets of strings, so its problems would differ from process to process), one thread for linear algebra, and a
supervisor (``process_tree``), so that every process they start ends with them.

Left out: the messages on the connection (``verifier_pool.worker``, ``reasoning_gym_datasets``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from heliostat.nested_runs import INSIDE
from heliostat.tasks.sandbox.child_output import forward_output
from heliostat.tasks.sandbox.process_tree import SUPERVISED, kill_descendants

_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); fds = [*map(int, sys.argv[3:])]; "
    "from heliostat.tasks.sandbox.process_tree import supervise; supervise(fds[0]); "
    "importlib.import_module(sys.argv[2]).main(*fds)"
)
_TICK_S = 0.005
_PATIENCE_S = 10.0  # for a supervisor to reap its descendants; then it is killed too
_LAST_WORDS_S = 1.0
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Child:
    """A running interpreter and the parent's end of the connection to it.

    Attributes:
        process: the interpreter's supervisor, or itself where the system has none; ends as the interpreter ends.
        mark: an environment variable's value that only the interpreter and its descendants have.
        output_thread: forwards the interpreter's output until its last writer has gone.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    mark: str
    output_thread: threading.Thread

    def interrupt(self) -> None:
        """Send SIGKILL to the interpreter and its descendants; does not wait, so any thread may call this."""
        if self.process.returncode is None:  # not waited for yet, so their ids cannot have been reused
            kill_descendants(self.process.pid, self.mark)
            if not SUPERVISED:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> int:
        """Kill the interpreter and its descendants. Returns its exit code (its own, if it had already ended)."""
        self.connection.close()
        patience = time.monotonic() + _PATIENCE_S
        while self.process.poll() is None:
            self.interrupt()
            if time.monotonic() > patience:
                self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_TICK_S)
        # A supervisor that was killed itself may have left processes.
        while kill_descendants(-1, self.mark) and time.monotonic() < patience:
            time.sleep(_TICK_S)
        self.output_thread.join(_LAST_WORDS_S)
        return self.process.returncode


def start_child(module: str, inherited_fds: Sequence[int] = ()) -> Child:
    """Run ``module.main(connection_fd, *inherited_fds)`` in a fresh interpreter.

    The child sees end-of-file on its connection when this process ends, even when killed. Its output goes to standard
    error, because another program may read standard output, with control characters made visible.
    """
    ours, theirs = socket.socketpair()
    mark = uuid.uuid4().hex
    read_fd, write_fd = os.pipe()
    output_thread = forward_output(read_fd)  # also closes it, where no child is started
    with theirs, open(write_fd, "wb", buffering=0) as output:  # noqa: PTH123  a descriptor
        fds = (theirs.fileno(), *inherited_fds)
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), module, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | _ENVIRONMENT | {INSIDE: mark},
            pass_fds=fds,
            start_new_session=True,
        )
    return Child(process, Connection(ours.detach()), mark, output_thread)
