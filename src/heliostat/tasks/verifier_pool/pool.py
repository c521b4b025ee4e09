"""Run verifiers in worker processes that may hang, crash or lie, and collect verdicts in order.

One thread of the parent manages one worker: it sends a batch of problems with their texts, collects scores, and kills
the worker when a text exceeds its time limit. It then starts another worker, which continues after the offending text.
A text that was scored but not yet reported when its worker died is scored again.

Left out: combining scores into a verdict (``task``), the worker's own code (``worker``), and its deadline
(``worker_handle``).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

from heliostat.arguments import texts as several
from heliostat.config import ConfigError
from heliostat.nested_runs import refuse_nested
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.judging import Judging
from heliostat.tasks.task import Task
from heliostat.tasks.verifier_pool.batches import Batch, Job, VerifierError
from heliostat.tasks.verifier_pool.worker import TaskSpec
from heliostat.tasks.verifier_pool.worker_handle import Worker, WorkerLost
from heliostat.tasks.verifiers.builtin import Function
from heliostat.types import Group, Problem, Verdict

__all__ = ["VerdictCollector", "VerifierError", "VerifierPool"]

_MAX_BATCH = 15  # jobs that one worker takes at once, at most, besides the first
_MAX_STARTS = 3  # workers in a row that die before they judge anything


class VerifierPool:
    """A pool of worker processes that score answers under the time and memory limits of their tasks.

    Use it as a context manager: workers start on entering, in the background, and have ended after leaving.

    Args:
        tasks: the tasks whose problems will be judged; their names must differ.
        environment: the environment that episodes are played in, if any; its processes run as long as the pool.

    Attributes:
        environments: the pool of the environment's processes.
        judging: the judge of groups, in this process; ``judge`` asks the verifiers alone.

    Raises:
        ConfigError: two tasks have the same name.
        NestedRun: on entering, inside a verifier process.

    **Limits**: a verdict depends only on the problem and the text, not on the number of workers, on the other texts, or
    on the order of submission, as long as the verifier itself is a function of them.
    """

    def __init__(self, tasks: Sequence[Task], environment: EnvironmentSpec | None = None) -> None:
        self.environments = None if environment is None else EnvironmentPool(environment)
        self.judging: Judging | None = None
        self._tasks = {task.name: (number, task) for number, task in enumerate(tasks)}
        if len(self._tasks) < len(tasks):
            raise ConfigError("two tasks have the same name; give one of them a label")
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[_WorkerThread] = []

    def __enter__(self) -> Self:
        refuse_nested("verifier processes")
        tasks = [task for _, task in self._tasks.values()]
        specs = [spec_of(task) for task in tasks]
        count = max((task.num_workers for task in tasks), default=0)
        self._threads = [_WorkerThread(specs, self._jobs, count) for _ in range(count)]
        for keeper in self._threads:
            keeper.start()
        if self.environments is not None:
            self.environments.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.environments is not None:
            self.environments.__exit__()
        self._jobs.put(None)
        for keeper in self._threads:
            keeper.stop()
        self._threads = []

    @property
    def num_workers(self) -> int:
        """Number of worker processes."""
        return max((task.num_workers for _, task in self._tasks.values()), default=0)

    def judge(self, problem: Problem, texts: Sequence[str], *, stops: bool = True) -> Future[tuple[Verdict, ...]]:
        """Judge completions of one problem; the future's result is one verdict per text, in order.

        Args:
            stops: whether a failure is handled by the task's ``on_failure``; otherwise it is only recorded
                in its verdict.

        Raises (through the future):
            VerifierError: a verifier failed and the task's ``on_failure`` is ``stop``, or no worker can be started.
        """
        return self._put(problem, several(texts, "texts"), tuple, stops)

    def submit(self, group: Group) -> Future[Group]:
        """Start judging a group; the future's result is the same group with its verdicts.

        Trajectories are judged by their environment's rewards, where it gave some. Other groups of a task without
        verifiers, which a judge will score, have no verdicts.
        """
        _, task = self._task_of(group.prompt.problem)
        done: Future[Group] = Future()
        given = [task.trajectory_verdict(one, group.prompt.prefix_turns) for one in group.completions]
        judged = [one for one, verdict in zip(group.completions, given, strict=True) if verdict is None]

        def finish(verdicts: list[Verdict]) -> Group:
            by_verifiers = iter(verdicts)
            return replace(group, verdicts=tuple(verdict or next(by_verifiers) for verdict in given))

        if not judged:
            done.set_result(finish([]))
            return done
        if self.judging is not None and not task.verifiers:
            done.set_result(group)
            return done
        texts = [completion.text for completion in judged]
        ids = tuple(completion.sampled_ids for completion in judged)
        return self._put(group.prompt.problem, texts, finish, token_ids=ids)

    def begin(self) -> VerdictCollector:
        """Return a collector that judges groups as they are submitted."""
        return VerdictCollector(self)

    def verify(self, groups: Sequence[Group]) -> list[Group]:
        """Return the same groups, in the same order, with their verdicts and without unscored completions.

        Raises:
            VerifierError: see ``judge``.
            JudgeFailed: too many completions are unscored.
        """
        return [group.scored() for group in self.begin().finish(groups)]

    def _task_of(self, problem: Problem) -> tuple[int, Task]:
        if problem.task not in self._tasks:
            raise ValueError(f"problem {problem.problem_id} belongs to task '{problem.task}', not to one of this pool")
        return self._tasks[problem.task]

    def _put(
        self,
        problem: Problem,
        texts: Sequence[str],
        finish: Callable[[list[Verdict]], Any],
        stops: bool = True,
        token_ids: tuple[tuple[int, ...], ...] = (),
    ) -> Future[Any]:
        if not self._threads:
            raise RuntimeError("a VerifierPool judges only inside its `with` block")
        number, task = self._task_of(problem)
        if not any(isinstance(weighted.verifier, Function) for weighted in task.verifiers):
            token_ids = ()
        task = task if stops else replace(task, on_failure="zero")
        job = Job(task, number, problem, tuple(texts), finish, token_ids)
        self._jobs.put(job)
        return job.future


class VerdictCollector:
    """Pending verdicts of one batch of groups, each started when its group is submitted.

    **Limits**: without any submission this is ``VerifierPool.verify``.
    """

    def __init__(self, pool: VerifierPool) -> None:
        self._pool = pool
        self._futures: dict[int, Future[Group]] = {}
        self._tickets: dict[int, Any] = {}

    def submit(self, index: int, group: Group) -> None:
        """Start judging the group with this index."""
        self._futures[index] = self._pool.submit(group)
        if self._pool.judging is not None:
            self._tickets[index] = self._pool.judging.begin(group)

    def finish(self, groups: Sequence[Group]) -> list[Group]:
        """Return all groups with their verdicts, in order; those not submitted are judged now.

        Unscored completions are still there.

        Raises:
            VerifierError: see ``VerifierPool.judge``.
            JudgeFailed: too many completions are unscored.
        """
        for index, group in enumerate(groups):
            if index not in self._futures:
                self.submit(index, group)
        verified = [self._futures[index].result() for index in range(len(groups))]
        if self._pool.judging is None:
            return verified
        return self._pool.judging.judged(verified, [self._tickets[index] for index in range(len(groups))])


class _WorkerThread(threading.Thread):
    """A thread that keeps one worker running and supplied with jobs."""

    def __init__(self, specs: list[TaskSpec], jobs: queue.SimpleQueue[Job | None], num_threads: int) -> None:
        super().__init__(daemon=True, name="verifier-keeper")
        self._specs = specs
        self._jobs = jobs
        self._num_threads = num_threads
        self._worker: Worker | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End worker and thread, from another thread; pending jobs get an error."""
        self._stopped.set()
        while self.is_alive():
            if (worker := self._worker) is not None:
                worker.child.interrupt()
            self.join(timeout=0.1)

    def run(self) -> None:
        with contextlib.suppress(Exception):
            self._prepare()  # while the model loads; the first job tries again, and its future carries the error
        while jobs := self._take():
            batch = Batch([job for job in jobs if job.future.set_running_or_notify_cancel()])
            try:
                self._judge(batch)
                batch.resolve()
            except BaseException as error:
                batch.fail(error)
        self._drop()

    def _take(self) -> list[Job]:
        """Wait for jobs and take a fair share of the queue; empty if the pool is closing."""
        jobs: list[Job] = []
        while not jobs or len(jobs) <= min(_MAX_BATCH, self._jobs.qsize() // (2 * self._num_threads)):
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:  # another keeper was faster
                break
            if job is None:
                self._jobs.put(None)  # every keeper must see it, and this one again if it has work to do first
                break
            jobs.append(job)
        return jobs

    def _judge(self, batch: Batch) -> None:
        """Fill in the batch's outcomes, and restart the worker whenever it is lost."""
        starts = 0
        while batch.is_open:
            try:
                self._prepare().judge(batch)
            except WorkerLost as lost:
                self._drop()
                if lost.number >= 0:
                    starts = 0
                    batch.outcomes[lost.number] = ({}, str(lost))
                    continue
                starts += 1
                if starts == _MAX_STARTS:
                    raise VerifierError(f"{lost}, {starts} times in a row before judging anything") from lost

    def _prepare(self) -> Worker:
        if self._stopped.is_set():
            raise VerifierError("the verifier pool was closed while this answer waited for its verdict")
        if self._worker is None:
            try:
                self._worker = Worker(self._specs)
            except OSError as error:
                raise VerifierError(f"a verifier process cannot be started: {error}") from error
        try:
            self._worker.wait_until_ready()
        except BaseException:  # after any error, the process is no longer usable
            self._drop()
            raise
        return self._worker

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.child.kill()
            self._worker = None


def spec_of(task: Task) -> TaskSpec:
    """Return the part of ``task`` that a worker needs."""
    verifiers = tuple((weighted.name, weighted.sees, weighted.verifier) for weighted in task.verifiers)
    return TaskSpec(task.answer_after, task.timeout_s, task.memory_mb, verifiers)
