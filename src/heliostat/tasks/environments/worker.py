"""Run environments in a worker process: read calls, make them one at a time, reply.

The process may hang, crash or run out of memory; the pool in the parent process watches and replaces it.

Left out: time limits, retries and replays (``keeper``), and the format of messages (``messages``). Imports neither
torch nor numpy by itself.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from heliostat.nested_runs import NestedRun
from heliostat.tasks.environments.building import build
from heliostat.tasks.environments.contract import Environment
from heliostat.tasks.environments.messages import (
    Loading,
    Request,
    plain_step,
    read_observation,
    read_schemas,
    read_text,
)
from heliostat.tasks.environments.random_state import RandomState
from heliostat.tasks.sandbox.memory_limit import MemoryLimit

_ORPHAN_S = 5.0  # a process that hangs without a parent to kill it ends itself this long after its limit
_USED_UP = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_MAX_REASON = 300  # characters


def main(connection_fd: int) -> None:
    """Serve calls until the parent closes the connection."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(connection_fd))


def _serve(connection: Connection) -> None:
    loading: Loading = connection.recv()
    spec = loading.spec
    try:
        instances = _Instances(build(spec), loading.isolates_random)
    except BaseException as error:
        connection.send_bytes(json.dumps({"error": _told(error)}).encode())
        return
    memory = MemoryLimit()
    connection.send_bytes(b"{}")
    with Path(os.devnull).open("w") as nowhere:
        while True:
            request: Request = connection.recv()
            memory.allow(spec.memory_mb)
            # Works while the GIL is held. Where the parent lives, it kills this process long before.
            faulthandler.dump_traceback_later(spec.timeout_s + _ORPHAN_S, exit=True, file=nowhere)
            connection.send_bytes(_reply(instances, request))
            faulthandler.cancel_dump_traceback_later()


def _reply(instances: _Instances, request: Request) -> bytes:
    try:
        value = instances.call(request)
        return json.dumps({"serial": request.serial, "value": value}, allow_nan=False).encode()
    except NestedRun as error:  # no answer of an environment that trains is worth having
        return json.dumps({"serial": request.serial, "error": _told(error), "fatal": True}).encode()
    except BaseException as error:  # SystemExit too: an environment must not end the process that its siblings share
        spoiled = {"spoiled": True} if _is_spoiled(error) else {}
        return json.dumps({"serial": request.serial, "error": _told(error), **spoiled}).encode()


def _is_spoiled(error: BaseException) -> bool:
    """Return whether a failure lies with the process: what its instances have used up is missing for all of them."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _USED_UP)


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_REASON]}" if text else type(error).__name__


class _Instances:
    """The instances of a process, by number."""

    def __init__(self, make: Callable[[], Environment], isolates_random: bool) -> None:
        self._make = make
        self._isolates_random = isolates_random
        self._living: dict[int, tuple[Environment, RandomState]] = {}
        self._has_complained = False
        self._calls: dict[str, Callable[..., Any]] = {
            "reset": self._reset,
            "step": self._step,
            "oracle": self._oracle,
            "tools": self._tools,
            "close": self._close,
            "end": self._end,
        }

    def call(self, request: Request) -> Any:
        """Make a call and return its result as JSON values."""
        return self._calls[request.kind](request.instance, *request.arguments)

    def _reset(self, number: int, row: Mapping[str, Any], seed: int) -> Any:
        state = RandomState(seed)
        with self._active(state):
            environment = self._make()
            self._living[number] = environment, state
            observation = environment.reset(row, seed)
        return read_observation("" if observation is None else observation)

    def _step(self, number: int, action: str) -> Any:
        environment, state = self._living[number]
        with self._active(state):
            return plain_step(environment.step(action))

    def _oracle(self, number: int) -> Any:
        environment, state = self._living[number]
        with self._active(state, keeps=False):
            oracle = getattr(environment, "oracle", None)
            return read_text(oracle()) if callable(oracle) else None

    def _tools(self, number: int) -> Any:
        environment, state = self._living[number]
        with self._active(state, keeps=False):
            tools = getattr(environment, "tools", None)
            return read_schemas(tools() if callable(tools) else [])

    def _close(self, number: int) -> None:
        if number in self._living:
            environment, state = self._living.pop(number)
            close = getattr(environment, "close", None)
            if close is None:
                return
            try:
                with self._active(state):
                    close()
            except Exception:  # the episode is over, so this costs nobody anything; said once for a process
                if not self._has_complained:
                    traceback.print_exc()
                self._has_complained = True

    def _end(self, _: int) -> None:
        for number in list(self._living):
            self._close(number)

    def _active(self, state: RandomState, *, keeps: bool = True) -> Any:
        return state.active(keeps=keeps) if self._isolates_random else nullcontext()
