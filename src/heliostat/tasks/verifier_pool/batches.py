"""Jobs and batches: problems with the texts to score, and the outcome of each text.

Left out: running them (``worker_handle``), and their order (``pool``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from heliostat.tasks.task import Task
from heliostat.tasks.verifier_pool.worker import Request
from heliostat.types import Problem, Verdict

Outcome = tuple[dict[str, float | None], str]


class VerifierError(RuntimeError):
    """A verifier failed and the task says to stop, or no worker can be started."""


@dataclass(frozen=True, slots=True)
class Job:
    """One problem with its texts, and the future that waits for their verdicts.

    Attributes:
        token_ids: sampled ids of each text; empty if the texts were not sampled.
    """

    task: Task
    task_number: int
    problem: Problem
    texts: tuple[str, ...]
    finish: Callable[[list[Verdict]], Any]
    token_ids: tuple[tuple[int, ...], ...] = ()
    future: Future[Any] = field(default_factory=Future)

    def request(self, texts: Iterable[tuple[int, str, tuple[int, ...] | None]]) -> Request:
        prompt = self.problem.prompt
        return Request(
            task=self.task_number,
            prompt=prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
            answer=self.problem.answer,
            columns=self.problem.columns,
            texts=tuple(texts),
            also_right=self.problem.also_right,
        )

    def resolve(self, outcomes: Iterable[Outcome]) -> None:
        verdicts = [self.task.verdict(*outcome) for outcome in outcomes]
        failures = [verdict.failure for verdict in verdicts if verdict.failure]
        if not failures or self.task.on_failure == "zero":
            self.future.set_result(self.finish(verdicts))
            return
        message = f"task '{self.task.name}', problem {self.problem.problem_id}: {failures[0]}; set task.on_failure = "
        self.future.set_exception(VerifierError(message + "'zero' to give such samples no reward and go on"))


class Batch:
    """Several jobs for one worker at once, so that cheap verdicts do not wait for messages."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.owners = [job for job in jobs for _ in job.texts]  # text number -> job
        self.texts = [text for job in jobs for text in job.texts]
        self.outcomes: dict[int, Outcome] = {}

    @property
    def is_open(self) -> bool:
        return len(self.outcomes) < len(self.owners)

    def requests(self) -> list[Request]:
        """Return requests for the texts that have no outcome yet."""
        numbers = itertools.count()
        numbered = [
            (job, [(next(numbers), *pair) for pair in zip(job.texts, job.token_ids or itertools.repeat(None))])  # noqa: B905
            for job in self.jobs
        ]
        return [job.request(text for text in texts if text[0] not in self.outcomes) for job, texts in numbered]

    def resolve(self) -> None:
        """Set the result of every job's future."""
        numbers = itertools.count()
        for job in self.jobs:
            job.resolve([self.outcomes[next(numbers)] for _ in job.texts])

    def fail(self, error: BaseException) -> None:
        """Set ``error`` on the future of every unfinished job."""
        for job in self.jobs:
            if not job.future.done():
                job.future.set_exception(error)
