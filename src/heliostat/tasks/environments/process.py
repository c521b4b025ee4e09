"""Manage one environment process from the parent, without trusting it.

Every message is bounded in time and size, its shape is checked, and the deadline uses the parent's own clock.

Left out: replacing a lost process (``keeper``), and killing its descendants (``sandbox.process_tree``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.messages import MAX_MESSAGE, Loading, Reader, Request, read_reply
from heliostat.tasks.sandbox.connection import BoundedConnection
from heliostat.tasks.sandbox.interpreter import Child, start_child

_START_S = 120.0  # importing a large package takes long on a busy machine
_MAX_REASON = 400  # characters of a failure that the process reports


class EnvironmentNotLoaded(RuntimeError):
    """No process can be started, or none can load the environment: every episode would fail."""


class ProcessLost(Exception):
    """The process died, sent an invalid message, used up its resources, or was killed for exceeding a limit."""


class CallFailed(Exception):
    """The environment's own code raised an exception, or returned a value of the wrong type."""


class EnvironmentProcess:
    """The parent's side of one process.

    Args:
        number: of the process, in the order in which its keeper started them.

    Raises:
        EnvironmentNotLoaded: the system starts no further process.
    """

    def __init__(self, loading: Loading, number: int) -> None:
        self.number = number
        self._loading = loading
        try:
            self.child: Child = start_child("heliostat.tasks.environments.worker")
        except OSError as error:
            raise EnvironmentNotLoaded(f"an environment process cannot be started: {error}") from error
        self._wire = BoundedConnection(self.child.connection, MAX_MESSAGE)
        self._is_ready = False
        self._serial = 0

    def wait_until_ready(self) -> None:
        """Block until the process has loaded the environment.

        Raises:
            EnvironmentNotLoaded: it cannot, or takes too long.
            ProcessLost: it died.
        """
        if self._is_ready:
            return
        with self._as_lost():
            self._wire.send(self._loading, _START_S)
            message = self._wire.receive(_START_S)
            if message is None:
                raise EnvironmentNotLoaded(f"an environment process was not ready within {_START_S:.0f} s")
            answer = json.loads(message)
            if not isinstance(answer, dict):
                raise ValueError("an answer that is none")
        if "error" in answer:
            raise EnvironmentNotLoaded(
                f"an environment process cannot load {label(self._loading.spec)}: {_reason(answer)}"
            )
        self._is_ready = True

    def call(self, kind: str, instance: int, arguments: tuple[Any, ...], read: Reader, timeout_s: float) -> Any:
        """Call an instance and return the checked result.

        Raises:
            CallFailed: the environment raised an exception.
            EnvironmentNotLoaded: it tried to start a run.
            ProcessLost: no valid reply came in time; the process has been killed.
        """
        self._serial += 1
        with self._as_lost():
            self._wire.send(Request(self._serial, kind, instance, arguments), timeout_s)
            message = self._wire.receive(timeout_s)
            if message is None:
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            reply = read_reply(message, self._serial)
            if "error" not in reply:
                return read(reply["value"])
        if "fatal" in reply:
            raise EnvironmentNotLoaded(f"{label(self._loading.spec)} raised {_reason(reply)}")
        if "spoiled" in reply:
            self.child.kill()
            raise ProcessLost(f"it raised {_reason(reply)}")
        raise CallFailed(f"it raised {_reason(reply)}")

    @contextlib.contextmanager
    def _as_lost(self) -> Iterator[None]:
        """Turn the errors of a broken connection or an invalid message into ``ProcessLost``, and kill the process."""
        try:
            yield
        except TimeoutError as error:
            self.child.kill()
            raise ProcessLost(str(error)) from None
        except (EOFError, OSError):
            code = self.child.kill()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ProcessLost(f"its process died ({how})") from None
        except (ValueError, TypeError, RecursionError) as error:
            self.child.kill()
            raise ProcessLost(f"its process sent an invalid message ({error!s:.80})") from None


def label(spec: EnvironmentSpec) -> str:
    """Return the name of an environment in messages."""
    return f"environment '{spec.name}'" if spec.name else f"tools '{', '.join(spec.tools)}'"


def _reason(answer: dict[str, Any]) -> str:
    return " ".join(str(answer["error"]).split())[:_MAX_REASON]
