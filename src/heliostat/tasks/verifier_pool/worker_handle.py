"""Manage one worker process from the parent, without trusting it.

A worker's code shares memory with model text. So every message is bounded in time and size and its shape is checked,
the deadline uses the parent's own clock, and the shared progress is only used to attribute a failure to a text.

Left out: replacing a lost worker (``pool``), and killing its descendants (``sandbox.process_tree``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from heliostat.tasks.sandbox.connection import BoundedConnection
from heliostat.tasks.sandbox.interpreter import Child, start_child
from heliostat.tasks.sandbox.reported import excerpt
from heliostat.tasks.verifier_pool.batches import Batch, Outcome, VerifierError
from heliostat.tasks.verifier_pool.worker import Progress, TaskSpec

_START_S = 120.0  # importing reasoning-gym takes 2 CPU-seconds, and longer on a busy machine
_BETWEEN_S = 60.0  # a worker may take this long to receive a request before its first text starts
_TICK_S = 0.05  # a text that takes too long is noticed this late, at most


class WorkerLost(Exception):
    """A worker died or was killed; ``number`` is the text it was scoring, or -1."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class Worker:
    """The parent's side of one worker process.

    Raises:
        OSError: the system starts no further process.
    """

    def __init__(self, specs: list[TaskSpec]) -> None:
        with _shared_file(Progress.SIZE) as fd:
            self.progress = Progress(mmap.mmap(fd, Progress.SIZE))
            self.progress.write(-1)
            self.child: Child = start_child("heliostat.tasks.verifier_pool.worker", [fd])
        self.wire = BoundedConnection(self.child.connection)
        self._specs = specs
        self._ready = False

    def wait_until_ready(self) -> None:
        """Block until the worker has loaded its verifiers.

        Raises:
            VerifierError: it cannot load them, or takes too long.
            WorkerLost: it died.
        """
        if self._ready:
            return
        until = time.monotonic() + _START_S
        with self._as_worker_lost(-1):
            self.wire.send(self._specs, _START_S)
            message = self.wire.receive(until - time.monotonic())
            if message is None:
                raise VerifierError(f"a verifier process was not ready within {_START_S:.0f} s")
            answer = json.loads(message)
            if not isinstance(answer, dict):
                raise ValueError("an answer that is none")
        if "error" in answer:
            raise VerifierError(f"a verifier process could not load its verifiers: {answer['error']}")
        self._ready = True

    def judge(self, batch: Batch) -> None:
        """Send the batch's open texts and collect their outcomes.

        Raises:
            VerifierError: a verifier tried to start a run.
            WorkerLost: it died, sent an invalid message, or was killed for exceeding a time limit.
        """
        with self._as_worker_lost(None, batch):
            self.wire.send(batch.requests(), _BETWEEN_S)
        watch = _Watch(self.progress, batch)
        while batch.is_open:
            with self._as_worker_lost(None, batch):
                message = self.wire.receive(watch.patience_s())
                if message is not None:
                    batch.outcomes.update(read_results(message, batch))
                    continue
            if overdue := watch.overdue():
                number, reason = overdue
                self.child.kill()
                raise WorkerLost(number, self._said(reason, number, batch))

    @contextlib.contextmanager
    def _as_worker_lost(self, number: int | None, batch: Batch | None = None) -> Iterator[None]:
        """Turn the errors of a broken connection or an invalid message into ``WorkerLost``, and kill the worker."""
        try:
            yield
        except TimeoutError as error:
            self.child.kill()
            raise WorkerLost(-1, f"the verifier's process hangs: {error}") from None
        except (EOFError, OSError):
            code = self.child.kill()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            blamed = self._at(number, batch)
            raise WorkerLost(blamed, self._said(f"the verifier's process died ({how})", blamed, batch)) from None
        except (ValueError, RecursionError) as error:
            self.child.kill()
            blamed = self._at(number, batch)
            if blamed < 0 and batch is not None:
                blamed = _first_open(batch)
            raise WorkerLost(blamed, f"the verifier's process sent an invalid verdict ({error!s:.80})") from None

    def _said(self, reason: str, number: int, batch: Batch | None) -> str:
        """Add the current verifier and the end of the text to ``reason``."""
        if number < 0 or batch is None:
            return reason
        verifiers, index = batch.owners[number].task.verifiers, self.progress.read()[2]
        name = f"verifier '{verifiers[index].name}': " if 0 <= index < len(verifiers) else ""
        return f"{name}{reason}; it read {excerpt(batch.texts[number])}"

    def _at(self, number: int | None, batch: Batch | None) -> int:
        return _blamed(self.progress.read()[0], batch) if number is None and batch is not None else -1


class _Watch:
    """The deadlines of one batch: of each text, and of all texts together.

    **Limits**: a worker can bring its deadline forward through the shared progress, never postpone it.
    """

    def __init__(self, progress: Progress, batch: Batch) -> None:
        self._progress = progress
        self._batch = batch
        self._begun = self._changed = time.monotonic()
        self._first_seen: dict[int, float] = {}
        self._state = progress.read()
        open_texts = [job.task.timeout_s for n, job in enumerate(batch.owners) if n not in batch.outcomes]
        self._total_s = sum(open_texts) + _BETWEEN_S

    def patience_s(self) -> float:
        """Return how many seconds to wait for the next message."""
        _, left_s, _ = self._left()
        return min(max(left_s, 0.0), _TICK_S)

    def overdue(self) -> tuple[int, str] | None:
        """Return the text to blame and the reason, once a deadline has passed."""
        number, left_s, limit_s = self._left()
        if left_s > 0:
            return None
        return number, f"no verdict within {limit_s:g} s"

    def _left(self) -> tuple[int, float, float]:
        """Return the current text (-1: none), the seconds left, and its limit."""
        now, state = time.monotonic(), self._progress.read()
        if state != self._state:
            self._state, self._changed = state, now
        number = _blamed(state[0], self._batch)
        total = (number if number >= 0 else _first_open(self._batch), self._begun + self._total_s - now, self._total_s)
        if number < 0:
            return min((-1, self._changed + _BETWEEN_S - now, _BETWEEN_S), total, key=lambda left: left[1])
        limit_s = self._batch.owners[number].task.timeout_s
        since = self._first_seen.setdefault(number, now)
        return min((number, since + limit_s - now, limit_s), total, key=lambda left: left[1])


def _blamed(number: int, batch: Batch) -> int:
    """Return the text that ``number`` names; the first open one if it names none, -1 between texts.

    **Limits**: a verifier that overwrites the shared progress can put its blame on an earlier text of its batch whose
    verdict was not reported yet, which then fails too.
    """
    if number == -1 or (0 <= number < len(batch.owners) and number not in batch.outcomes):
        return number
    return _first_open(batch)


def _first_open(batch: Batch) -> int:
    """Return the first text without an outcome; the worker takes them in order."""
    return next((number for number in range(len(batch.owners)) if number not in batch.outcomes), -1)


def read_results(message: bytes, batch: Batch) -> dict[int, Outcome]:
    """Outcomes by text.

    Raises:
        ValueError: the message is invalid.
        VerifierError: it says that a verifier tried to start a run.
    """
    said = json.loads(message)
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        raise VerifierError(said["error"])
    if not isinstance(said, list):
        raise ValueError("no list of verdicts")
    return dict(_result(entry, batch) for entry in said)


def _result(entry: Any, batch: Batch) -> tuple[int, Outcome]:
    if not (isinstance(entry, list) and len(entry) == 3 and type(entry[0]) is int and isinstance(entry[2], str)):
        raise ValueError("a verdict of the wrong shape")
    number, scores, failure = entry
    if not 0 <= number < len(batch.owners) or number in batch.outcomes:
        raise ValueError("a verdict on no text that was asked about")
    names = {weighted.name for weighted in batch.owners[number].task.verifiers}
    whole = isinstance(scores, dict) and (scores.keys() <= names if failure else scores.keys() == names)
    if not whole or not all(score is None or _is_score(score) for score in scores.values()):
        raise ValueError("scores of the wrong shape")
    return number, (scores, failure)


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextlib.contextmanager
def _shared_file(size: int) -> Iterator[int]:
    """Yield a file of zeros to share with a child; on Linux it is in memory, and its size is sealed.

    Reading mapped memory of a truncated file, or of one on a full disk, raises a fatal signal.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.write(bytes(size))
            file.flush()
            yield file.fileno()
        return
    fd = os.memfd_create("heliostat-progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield fd
    finally:
        os.close(fd)
