"""Verdicts from worker processes that may hang, crash or lie, collected in order.

One thread of the parent watches one worker: hands it a problem with its texts, collects scores, kills it when a text
takes longer than its task allows, starts another, and goes on behind the text that did it. A text that was judged but
not yet reported when its worker died is judged again.

Left out: what a verdict is (``task``), and what runs in the worker (``worker``).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Self

from heliostat.config import ConfigError
from heliostat.tasks.nesting import refuse_nested
from heliostat.tasks.processes import Child, start_child
from heliostat.tasks.task import Task
from heliostat.tasks.worker import Progress, Request, TaskSpec
from heliostat.types import Group, Problem, Verdict

_START_S = 120.0  # importing reasoning-gym takes 2 CPU-seconds, and longer on a busy machine
_BETWEEN_S = 60.0  # a worker may take this long to receive a request before its first text starts
_TICK_S = 0.05  # a text that takes too long is noticed this late, at most
_MAX_BATCH = 15  # jobs that one worker takes at once, at most, besides the first
_MAX_STARTS = 3  # workers in a row that die before they judge anything

Outcome = tuple[dict[str, float | None], str]


class VerifierError(RuntimeError):
    """A verifier failed and the task says to stop, or no worker can be started."""


class VerifierPool:
    """Judges answers in worker processes under the time and memory limits of their tasks.

    Use it as a context manager: workers start on entering, without waiting for them, and are gone after leaving.

    Args:
        tasks: the tasks whose problems will be judged; their names must differ.

    Raises:
        ConfigError: two tasks have the same name.
        NestedRun: on entering, inside a verifier process.

    **Limits**: a verdict depends only on the problem and the text, not on the number of workers, on the other texts, or
    on the order of submission, as long as the verifier itself is a function of them.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: (number, task) for number, task in enumerate(tasks)}
        if len(self._tasks) < len(tasks):
            raise ConfigError("two tasks have the same name; give one of them a label")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._keepers: list[_Keeper] = []

    def __enter__(self) -> Self:
        refuse_nested("verifier processes")
        tasks = [task for _, task in self._tasks.values()]
        specs = [_spec(task) for task in tasks]
        count = max(task.num_workers for task in tasks)
        self._keepers = [_Keeper(specs, self._jobs, count) for _ in range(count)]
        for keeper in self._keepers:
            keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        for keeper in self._keepers:
            keeper.stop()
        self._keepers = []

    def judge(self, problem: Problem, texts: Sequence[str]) -> Future[tuple[Verdict, ...]]:
        """Judge completions of one problem; the future holds one verdict per text, in order.

        Raises (through the future):
            VerifierError: a verifier failed and the task's ``on_failure`` is ``stop``, or no worker can be started.
        """
        return self._put(problem, texts, tuple)

    def submit(self, group: Group) -> Future[Group]:
        """Start judging a group; the future holds the same group with its verdicts."""
        texts = [completion.text for completion in group.completions]
        return self._put(group.prompt.problem, texts, lambda verdicts: replace(group, verdicts=tuple(verdicts)))

    def begin(self) -> Judging:
        """Judge groups as they are announced."""
        return Judging(self)

    def verify(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups, in the same order, with their verdicts.

        Raises:
            VerifierError: see ``judge``.
        """
        return self.begin().finish(groups)

    def _put(self, problem: Problem, texts: Sequence[str], finish: Callable[[list[Verdict]], Any]) -> Future[Any]:
        if not self._keepers:
            raise RuntimeError("a VerifierPool judges only inside its `with` block")
        if problem.task not in self._tasks:
            raise ValueError(f"problem {problem.problem_id} belongs to task '{problem.task}', not to one of this pool")
        number, task = self._tasks[problem.task]
        job = _Job(task, number, problem, tuple(texts), finish)
        self._jobs.put(job)
        return job.future


class Judging:
    """Groups of one batch on their way to verdicts, begun as each is announced and collected in the end.

    **Limits**: with no announcement at all this is ``VerifierPool.verify``.
    """

    def __init__(self, pool: VerifierPool) -> None:
        self._pool = pool
        self._futures: dict[int, Future[Group]] = {}

    def announce(self, index: int, group: Group) -> None:
        """Start judging the group that will stand at ``index``."""
        self._futures[index] = self._pool.submit(group)

    def finish(self, groups: Sequence[Group]) -> list[Group]:
        """All groups with their verdicts, in order; those not announced are judged now.

        Raises:
            VerifierError: see ``VerifierPool.judge``.
        """
        for index, group in enumerate(groups):
            if index not in self._futures:
                self.announce(index, group)
        return [self._futures[index].result() for index in range(len(groups))]


@dataclass(frozen=True, slots=True)
class _Job:
    """One problem with its texts, and the future that waits for their verdicts."""

    task: Task
    task_number: int
    problem: Problem
    texts: tuple[str, ...]
    finish: Callable[[list[Verdict]], Any]
    future: Future[Any] = field(default_factory=Future)

    def request(self, texts: Iterable[tuple[int, str]]) -> Request:
        prompt = self.problem.prompt
        return Request(
            task=self.task_number,
            prompt=prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
            answer=self.problem.answer,
            columns=self.problem.columns,
            texts=tuple(texts),
        )

    def resolve(self, outcomes: Iterable[Outcome]) -> None:
        verdicts = [self.task.verdict(*outcome) for outcome in outcomes]
        failures = [verdict.failure for verdict in verdicts if verdict.failure]
        if not failures or self.task.on_failure == "zero":
            self.future.set_result(self.finish(verdicts))
            return
        message = f"task '{self.task.name}', problem {self.problem.problem_id}: {failures[0]}; set task.on_failure = "
        self.future.set_exception(VerifierError(message + "'zero' to give such samples no reward and go on"))


class _Batch:
    """Several jobs for one worker at once, so that cheap verdicts do not wait for messages."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self.jobs = jobs
        self.owners = [job for job in jobs for _ in job.texts]  # text number -> job
        self.outcomes: dict[int, Outcome] = {}

    @property
    def is_open(self) -> bool:
        return len(self.outcomes) < len(self.owners)

    def requests(self) -> list[Request]:
        """The texts that have no outcome yet."""
        numbers = itertools.count()
        numbered = [(job, [(next(numbers), text) for text in job.texts]) for job in self.jobs]
        return [
            job.request((number, text) for number, text in texts if number not in self.outcomes)
            for job, texts in numbered
        ]

    def resolve(self) -> None:
        """Hand every job its verdicts."""
        numbers = itertools.count()
        for job in self.jobs:
            job.resolve([self.outcomes[next(numbers)] for _ in job.texts])

    def fail(self, error: BaseException) -> None:
        for job in self.jobs:
            job.future.set_exception(error)


class _WorkerLost(Exception):
    """The worker is gone. ``number``: the text it was at, or -1."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class _Keeper(threading.Thread):
    """Keeps one worker alive and busy."""

    def __init__(self, specs: list[TaskSpec], jobs: queue.SimpleQueue[_Job | None], num_keepers: int) -> None:
        super().__init__(daemon=True, name="verifier-keeper")
        self._specs = specs
        self._jobs = jobs
        self._num_keepers = num_keepers
        self._worker: _Worker | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End worker and thread, from another thread; whatever still waits for a verdict gets an error."""
        self._stopped.set()
        while self.is_alive():
            if (worker := self._worker) is not None:
                worker.child.interrupt()
            self.join(timeout=0.1)

    def run(self) -> None:
        with contextlib.suppress(VerifierError, _WorkerLost):
            self._prepare()  # while the model loads; the first job tries again, and its future carries the error
        while jobs := self._take():
            batch = _Batch([job for job in jobs if job.future.set_running_or_notify_cancel()])
            try:
                self._judge(batch)
                batch.resolve()
            except BaseException as error:
                batch.fail(error)
        self._drop()

    def _take(self) -> list[_Job]:
        """Wait for jobs and take a fair share of those there are; none: the pool is closing."""
        jobs: list[_Job] = []
        while not jobs or len(jobs) <= min(_MAX_BATCH, self._jobs.qsize() // (2 * self._num_keepers)):
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:  # another keeper was faster
                break
            if job is None:
                self._jobs.put(None)  # every keeper must see it, and this one again if it has work to do first
                break
            jobs.append(job)
        return jobs

    def _judge(self, batch: _Batch) -> None:
        """Fill in the batch's outcomes, replacing the worker as often as it takes."""
        starts = 0
        while batch.is_open:
            try:
                self._prepare().judge(batch)
            except _WorkerLost as lost:
                self._drop()
                if lost.number >= 0:
                    starts = 0
                    batch.outcomes[lost.number] = ({}, str(lost))
                    continue
                starts += 1
                if starts == _MAX_STARTS:
                    raise VerifierError(f"{lost}, {starts} times in a row before judging anything") from lost

    def _prepare(self) -> _Worker:
        if self._stopped.is_set():
            raise VerifierError("the verifier pool was closed while this answer waited for its verdict")
        if self._worker is None:
            self._worker = _Worker(self._specs)
        try:
            self._worker.wait_until_ready()
        except VerifierError:
            self._drop()
            raise
        return self._worker

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.child.kill()
            self._worker = None


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, specs: list[TaskSpec]) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(Progress.SIZE)
            self.progress = Progress(mmap.mmap(file.fileno(), Progress.SIZE))
            self.progress.write(-1)
            self.child: Child = start_child("heliostat.tasks.worker", [file.fileno()])
        self._specs = specs
        self._ready = False

    def wait_until_ready(self) -> None:
        """Block until the worker has loaded its verifiers.

        Raises:
            VerifierError: it cannot load them.
            _WorkerLost: it died.
        """
        if self._ready:
            return
        self._send(self._specs)
        if not self.child.connection.poll(_START_S):
            raise VerifierError(f"a verifier process was not ready within {_START_S:.0f} s")
        answer = self._receive()
        if "error" in answer:
            raise VerifierError(f"a verifier process could not load its verifiers: {answer['error']}")
        self._ready = True

    def judge(self, batch: _Batch) -> None:
        """Send the batch's open texts and collect their outcomes.

        Raises:
            VerifierError: a verifier tried to start a run.
            _WorkerLost: it died, or was killed for taking longer than a task allows.
        """
        self._send(batch.requests())
        while batch.is_open:
            self._wait(batch)
            results = self._receive()
            if isinstance(results, dict):
                raise VerifierError(results["error"])
            for number, scores, failure in results:
                batch.outcomes[number] = (scores, failure)

    def _wait(self, batch: _Batch) -> None:
        """Wait for a message, as long as no text takes longer than its task allows."""
        begun = time.monotonic()
        while True:
            number, start = self.progress.read()
            limit_s = batch.owners[number].task.timeout_s if number >= 0 else _BETWEEN_S
            left_s = (start if number >= 0 else begun) + limit_s - time.monotonic()
            if self.child.connection.poll(min(max(left_s, 0.0), _TICK_S)):
                return
            if left_s <= 0 and self.progress.read() == (number, start):
                self.child.kill()
                raise _WorkerLost(number, f"no verdict within {limit_s:g} s")

    def _send(self, message: object) -> None:
        try:
            self.child.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def _receive(self) -> Any:
        try:
            return json.loads(self.child.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise self._lost() from None

    def _lost(self) -> _WorkerLost:
        code = self.child.kill()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return _WorkerLost(self.progress.read()[0], f"the verifier's process died ({how})")


def _spec(task: Task) -> TaskSpec:
    verifiers = tuple((weighted.name, weighted.sees, weighted.verifier) for weighted in task.verifiers)
    return TaskSpec(task.answer_after, task.timeout_s, task.memory_mb, verifiers)
