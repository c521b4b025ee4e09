"""Run verifiers in a worker process: read requests, score one text at a time, report scores.

The process may hang, crash or run out of memory; the pool in the parent process watches and replaces it. Scores are
sent as JSON, so that the parent parses only numbers and short strings, even if model text took over this process.

Left out: verdicts and weights (``task``), time limits (``worker_handle``). Imports neither torch nor numpy by itself.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from heliostat.nested_runs import NestedRun
from heliostat.tasks.answers import find_answer
from heliostat.tasks.sandbox.memory_limit import MemoryLimit
from heliostat.tasks.sandbox.reported import excerpt, finite_float
from heliostat.tasks.sandbox.safe_eval import install_audit_hook, patch_eval, restricted_execution
from heliostat.tasks.verifiers.builtin import Check, Sample, Verifier

_REPORT_EVERY_S = 0.05  # results wait for each other this long: one message for many cheap verdicts
_ORPHAN_S = 5.0  # a worker that hangs without a parent to kill it ends itself this long after its limits are used up


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """The part of a task that a worker needs: its verifiers and limits, without problems.

    Attributes:
        verifiers: (name, visible part of the completion, verifier) in the task's order.
    """

    answer_after: str
    timeout_s: float
    memory_mb: int
    verifiers: tuple[tuple[str, str, Verifier], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to score texts as answers to one problem.

    Attributes:
        texts: (number, text, sampled token ids); numbers are unique within one message.
    """

    task: int
    prompt: str | list[dict[str, str]]
    answer: str | None
    columns: Mapping[str, Any]
    texts: tuple[tuple[int, str, tuple[int, ...] | None], ...]
    also_right: tuple[str, ...] = ()


class Progress:
    """Memory shared with the parent: the current text's number (-1: none), its start time, and its verifier."""

    SIZE = 24

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def write(self, number: int) -> None:
        struct.pack_into("<qdq", self._memory, 0, number, time.monotonic(), 0)

    def write_verifier(self, index: int) -> None:
        struct.pack_into("<q", self._memory, 16, index)

    def read(self) -> tuple[int, float, int]:
        """Return text number, start on the system-wide monotonic clock in seconds, and verifier index in its task."""
        number, start, verifier = struct.unpack_from("<qdq", self._memory, 0)
        return int(number), float(start), int(verifier)


def main(connection_fd: int, progress_fd: int) -> None:
    """Serve requests until the parent closes the connection."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(connection_fd), progress_fd)


def _serve(connection: Connection, progress_fd: int) -> None:
    progress = Progress(mmap.mmap(progress_fd, Progress.SIZE))
    specs: list[TaskSpec] = connection.recv()
    try:
        judges = [_Judge(spec, progress) for spec in specs]
        patch_eval()
        install_audit_hook()
    except BaseException as error:
        connection.send_bytes(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    memory = MemoryLimit()
    connection.send_bytes(b"{}")
    with Path(os.devnull).open("w") as nowhere:
        while True:
            requests: list[Request] = connection.recv()
            budget_s = sum(judges[request.task].spec.timeout_s * len(request.texts) for request in requests)
            # Works while the GIL is held. Where the parent lives, it kills this process long before.
            faulthandler.dump_traceback_later(budget_s + _ORPHAN_S, exit=True, file=nowhere)
            reporter = _Reporter(connection)
            try:
                for request in requests:
                    judge = judges[request.task]
                    memory.allow(judge.spec.memory_mb)
                    for number, text, token_ids in request.texts:
                        progress.write(number)
                        result = judge.score(request, text, token_ids)
                        progress.write(-1)
                        reporter.add(number, *result)
                reporter.send()
            except NestedRun as error:  # a reward function must not start a training run
                connection.send_bytes(json.dumps({"error": str(error)}).encode())
                return
            faulthandler.cancel_dump_traceback_later()


class _Reporter:
    """A sender of ``[[number, scores, failure], ...]`` that groups fast results into one message."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._results: list[tuple[int, dict[str, float | None], str]] = []
        self._sent = time.monotonic()

    def add(self, number: int, scores: dict[str, float | None], failure: str) -> None:
        self._results.append((number, scores, failure))
        if time.monotonic() - self._sent > _REPORT_EVERY_S:
            self.send()

    def send(self) -> None:
        if self._results:
            self._connection.send_bytes(json.dumps(self._results).encode())
        self._results, self._sent = [], time.monotonic()


class _Judge:
    """The loaded verifiers of one task."""

    def __init__(self, spec: TaskSpec, progress: Progress) -> None:
        self.spec = spec
        self._progress = progress
        self._checks: list[tuple[str, str, tuple[bool, bool], Check]] = [
            (name, sees, (verifier.restricted, verifier.needs_answer), verifier.prepare())
            for name, sees, verifier in spec.verifiers
        ]

    def score(
        self, request: Request, completion: str, token_ids: tuple[int, ...] | None
    ) -> tuple[dict[str, float | None], str]:
        """Return scores by verifier name, and the first failure; verifiers after it are not called."""
        scores: dict[str, float | None] = {}
        answer = find_answer(completion, self.spec.answer_after)
        answers = {True: (request.answer, *request.also_right), False: (request.answer,)}
        for index, (name, sees, (restricted, compares), check) in enumerate(self._checks):
            self._progress.write_verifier(index)
            text = answer if sees == "answer" else completion.strip()
            if text is None:  # no answer marker, so no answer: a wrong answer, not a failure of the verifier
                scores[name] = 0.0
                continue
            samples = [Sample(request.prompt, each, request.columns, text, token_ids) for each in answers[compares]]
            try:
                with restricted_execution() if restricted else nullcontext():
                    scores[name] = _best(as_score(check(sample)) for sample in samples)
            except NestedRun:
                raise
            except BaseException as error:  # SystemExit too: a verifier must not end the worker
                return scores, f"{raised(name, error)}; it read {excerpt(text)}"
        return scores, ""


def raised(name: str, error: BaseException) -> str:
    """Format the error of a verifier."""
    return f"verifier '{name}' raised {type(error).__name__}: {str(error)[:200]}"


def _best(scores: Iterable[float | None]) -> float | None:
    """Return the highest score over all right answers; stops at 1.0."""
    best: float | None = None
    for score in scores:
        if score is not None and (best is None or score > best):
            best = score
        if best == 1.0:
            break
    return best


def as_score(value: object) -> float | None:
    """Convert a verifier's result to a finite float, or ``None`` if the verifier does not apply."""
    return finite_float(value, "a score")
