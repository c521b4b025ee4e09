"""Keep one environment process running, and make the calls of its episodes one at a time.

A call that fails is retried once, with a fresh instance in which the episode is replayed first: same row, seed and
actions. After an exception, that is an instance in the same process. After a time limit, used-up memory, death or
rubbish the process is replaced, and its other episodes are replayed when they are needed next. If a replay shows other
observations than before, the environment is no function of its problem, seed and actions, and the episode ends.

Left out: distributing episodes over keepers (``pool``), and the process itself (``process``).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from heliostat.tasks.environments.contract import EnvironmentFailed, EnvironmentSpec, Observation, Step
from heliostat.tasks.environments.messages import Loading, Reader, read_nothing, read_observation, read_step
from heliostat.tasks.environments.process import (
    CallFailed,
    EnvironmentNotLoaded,
    EnvironmentProcess,
    ProcessLost,
    label,
)
from heliostat.tasks.sandbox.reported import excerpt

_MAX_STARTS = 3  # processes in a row that die before they have loaded anything
_FAREWELL_S = 2.0  # for open instances to be closed when the pool ends; then they are killed


class PoolClosed(RuntimeError):
    """The pool was closed while an episode waited for its environment, or before."""


class NoOracle(EnvironmentFailed):
    """The environment has no ``oracle()``."""


class _Diverged(Exception):
    """A replay showed another observation than the first time."""


@dataclass
class History:
    """An episode as its keeper knows it: all that is needed to repeat it.

    Attributes:
        name: the problem's name in messages.
        steps: answered actions with their steps.
        process: number of the process in which its instance lives; 0: in none.
        failure: the reason why it cannot go on.
        is_closed: whether nobody needs its answers any more.
    """

    number: int
    row: Mapping[str, Any]
    seed: int
    name: str
    first: Observation | None = None
    steps: list[tuple[str, Step]] = field(default_factory=list)
    process: int = 0
    failure: EnvironmentFailed | None = None
    is_closed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the environment has ended the episode."""
        return bool(self.steps) and self.steps[-1][1].done


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an episode's instance, and the future that waits for its result."""

    history: History
    kind: str
    arguments: tuple[Any, ...]
    read: Reader
    future: Future[Any] = field(default_factory=Future)


@dataclass
class PoolCounts:
    """Counts of a pool's calls.

    Attributes:
        num_calls: calls that were answered, replays not included.
        num_retries: calls that failed and were tried again.
        num_replays: episodes that were repeated in a fresh instance.
        num_failures: episodes that failed.
        busy_s: seconds in calls, summed over processes.
        slowest_s: seconds of the slowest answered call.
    """

    num_calls: int = 0
    num_retries: int = 0
    num_replays: int = 0
    num_failures: int = 0
    busy_s: float = 0.0
    slowest_s: float = 0.0

    def __add__(self, other: PoolCounts) -> PoolCounts:
        return PoolCounts(
            self.num_calls + other.num_calls,
            self.num_retries + other.num_retries,
            self.num_replays + other.num_replays,
            self.num_failures + other.num_failures,
            self.busy_s + other.busy_s,
            max(self.slowest_s, other.slowest_s),
        )


class Keeper(threading.Thread):
    """A thread that keeps one process running and supplied with calls."""

    def __init__(self, spec: EnvironmentSpec, *, isolates_random: bool = True) -> None:
        super().__init__(daemon=True, name="environment-keeper")
        self.counts = PoolCounts()
        self._spec = spec
        self._loading = Loading(spec, isolates_random)
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self.process: EnvironmentProcess | None = None
        self._num_started = 0
        self._is_busy = True
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def put(self, call: Call) -> None:
        """Add a call to the queue; after the end its future gets an error."""
        with self._lock:
            if not self._stopped.is_set():
                self._calls.put(call)
                return
        if call.future.set_running_or_notify_cancel():
            call.future.set_exception(self._closed())

    def begin_stop(self) -> None:
        """Refuse further calls; pending ones get an error."""
        with self._lock:
            if not self._stopped.is_set():
                self._stopped.set()
                self._calls.put(None)

    def stop(self) -> None:
        """End process and thread, from another thread."""
        self.begin_stop()
        deadline = time.monotonic() + _FAREWELL_S
        while self.is_alive():
            if (process := self.process) is not None and (self._is_busy or time.monotonic() > deadline):
                process.child.interrupt()
            self.join(timeout=0.05)

    def run(self) -> None:
        with contextlib.suppress(Exception):
            self._prepare()  # while the model loads; the first call tries again, and its future carries the error
        self._is_busy = False
        while (call := self._calls.get()) is not None:
            if call.kind == "close":
                self._close(call.history)
            elif call.history.is_closed:
                call.future.cancel()
                call.future.set_running_or_notify_cancel()
            elif call.future.set_running_or_notify_cancel():
                self._answer(call)
        self._end()

    def _answer(self, call: Call) -> None:
        self._is_busy = True
        try:
            result = self._result(call)
        except BaseException as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)
        finally:
            self._is_busy = False

    def _result(self, call: Call) -> Any:
        """Make a call, and once more with a fresh instance if it fails."""
        history = call.history
        if history.failure is not None:
            raise history.failure
        if history.is_over and call.kind != "tools":
            raise RuntimeError("the episode is over: its environment takes no further action")
        try:
            try:
                result = self._try(call)
            except (ProcessLost, CallFailed) as error:
                self._give_up(history, error)
                self.counts.num_retries += 1
                result = self._try(call)
        except (ProcessLost, CallFailed, _Diverged) as error:
            self._give_up(history, error)
            history.failure = self._failed(call, str(error))
            self.counts.num_failures += 1
            raise history.failure from None
        if call.kind == "oracle" and result is None:
            raise NoOracle(f"{label(self._spec)} has no oracle()")
        return result

    def _try(self, call: Call) -> Any:
        process, history = self._prepare(), call.history
        if call.kind != "reset" and history.process != process.number:
            self._replay(process, history)
        history.process = process.number
        began = time.monotonic()
        result = process.call(call.kind, history.number, call.arguments, call.read, self._spec.timeout_s)
        seconds = time.monotonic() - began
        self.counts.num_calls += 1
        self.counts.busy_s += seconds
        self.counts.slowest_s = max(self.counts.slowest_s, seconds)
        if call.kind == "reset":
            history.first = result
        elif call.kind == "step":
            history.steps.append((call.arguments[0], result))
        return result

    def _replay(self, process: EnvironmentProcess, history: History) -> None:
        """Repeat an episode in a process that does not have it.

        Raises:
            _Diverged: an observation differs from the first time.
        """
        self.counts.num_replays += 1
        history.process = process.number
        timeout_s = self._spec.timeout_s
        first = process.call("reset", history.number, (history.row, history.seed), read_observation, timeout_s)
        history.first = first if history.first is None else history.first
        if first != history.first:
            raise _Diverged("its first observation differs when the episode is replayed with the same seed")
        for turn, (action, before) in enumerate(history.steps, start=1):
            step = process.call("step", history.number, (action,), read_step, timeout_s)
            if (step.observation, step.done) != (before.observation, before.done):
                raise _Diverged(f"its answer to turn {turn} differs when the episode is replayed with the same seed")

    def _prepare(self) -> EnvironmentProcess:
        """Return a process that has loaded the environment."""
        for _ in range(_MAX_STARTS):
            if self._stopped.is_set():
                raise self._closed()
            process = self.process or self._start()
            try:
                process.wait_until_ready()
            except ProcessLost as error:
                self._drop()
                lost = error
            except BaseException:  # after any error, the process is no longer usable
                self._drop()
                raise
            else:
                return process
        raise EnvironmentNotLoaded(f"{label(self._spec)}: {lost}, {_MAX_STARTS} times in a row while it loaded")

    def _start(self) -> EnvironmentProcess:
        self._num_started += 1
        self.process = EnvironmentProcess(self._loading, self._num_started)
        return self.process

    def _give_up(self, history: History, error: Exception) -> None:
        """Give up the instance that failed, and its process if that is lost."""
        if isinstance(error, ProcessLost):
            self._drop()
        self._close(history)

    def _close(self, history: History) -> None:
        """Close an instance; one whose process is gone has nothing left to close."""
        if (process := self.process) is not None and history.process == process.number:
            with self._unless_lost():
                process.call("close", history.number, (), read_nothing, self._spec.timeout_s)
        history.process = 0

    def _end(self) -> None:
        """Close all open instances and end the process."""
        if (process := self.process) is not None:
            with self._unless_lost():
                process.call("end", 0, (), read_nothing, _FAREWELL_S)
        self._drop()

    @contextlib.contextmanager
    def _unless_lost(self) -> Iterator[None]:
        """Drop the process where its instance cannot be closed: it ends with the process."""
        try:
            yield
        except (ProcessLost, CallFailed):
            self._drop()

    def _drop(self) -> None:
        if self.process is not None:
            self.process.child.kill()
            self.process = None

    def _failed(self, call: Call, reason: str) -> EnvironmentFailed:
        history = call.history
        place = f"turn {len(history.steps) + 1}" if call.kind == "step" else call.kind
        action = f", action {excerpt(call.arguments[0])}" if call.kind == "step" else ""
        return EnvironmentFailed(f"{label(self._spec)} failed on {history.name} at {place}{action}: {reason}")

    def _closed(self) -> PoolClosed:
        return PoolClosed(f"the pool of {label(self._spec)} was closed while an episode waited for it")
