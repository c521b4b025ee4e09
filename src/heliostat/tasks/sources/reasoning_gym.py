"""Tasks from reasoning-gym: any dataset by name, with its own settings and its own scorer.

The library itself runs in another interpreter (``reasoning_gym_datasets``), so it costs this process neither memory nor
its global random state, and the same seed gives the same problems in every process.

Left out: caching. Most datasets make thousands of problems a second, a few need 0.1-2 s for each one.
"""

from __future__ import annotations

import atexit
import hashlib
import threading
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from heliostat.config import ConfigError, EnvironmentSection, TaskSection
from heliostat.tasks.answers import find_answer
from heliostat.tasks.sandbox.interpreter import Child, start_child
from heliostat.tasks.settings import TaskSettings, build_verifiers, make_task, render
from heliostat.tasks.sources.worked_solutions import WRITERS, Writer, find_writer
from heliostat.tasks.task import Task, Teacher
from heliostat.types import Problem


@dataclass(frozen=True, kw_only=True)
class GymSettings(TaskSettings):
    """Keys of a ``reasoning-gym/<dataset>`` task.

    Attributes:
        settings: of the dataset itself.
        solution: a worked-solution writer's name, ``module:function``, or empty for the bare oracle answer.
        slips: probability that a total in a demonstration is wrong; problems keep their right solutions.
        slips_after: share of the supervised training before slips begin.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    solution: str = ""
    slips: Annotated[float, Field(ge=0, le=1)] = 0.0
    slips_after: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slips_after and not self.slips:
            raise ValueError(f"slips_after = {self.slips_after} says when slips begin, and slips is 0")


class Gym:
    """The interpreter that holds reasoning-gym, started on the first call."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self._lock = threading.Lock()

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of ``reasoning_gym_datasets`` in that interpreter; its errors are raised here."""
        with self._lock:
            if self.child is not None and self.child.process.poll() is not None:
                self.close()  # the interpreter ended after a minute without work
            kind, result = self._ask(function, arguments)
        if not kind:
            return result
        raise {"ConfigError": ConfigError, "ValueError": ValueError}.get(kind, RuntimeError)(result)

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child = None

    def _ask(self, function: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        if self.child is None:
            self.child = start_child("heliostat.tasks.reasoning_gym_datasets")
        try:
            self.child.connection.send((function, arguments))
            answer: tuple[str, Any] = self.child.connection.recv()
        except BaseException as error:
            code = self.child.kill()
            self.child = None  # also after Ctrl-C: its answer must not be mistaken for the next call's
            if isinstance(error, EOFError | OSError):
                raise RuntimeError(f"the process that makes reasoning-gym problems died (exit code {code})") from error
            raise
        return answer


_GYM = Gym()
atexit.register(_GYM.close)


def list_tasks() -> dict[str, str]:
    """Return every reasoning-gym task's name with a one-line description."""
    catalog: dict[str, str] = _GYM.call("catalog")
    return {f"reasoning-gym/{name}": line for name, line in catalog.items()}


def show_gym_task(name: str) -> str:
    """Describe a data set: one line, its settings with their defaults, and three example problems.

    Raises:
        ConfigError: there is no such task.
    """
    dataset = name.removeprefix("reasoning-gym/")
    headline, settings = _GYM.call("describe", dataset)
    lines = [f"reasoning-gym/{dataset}", headline, "", "settings:"]
    lines += [f"  {key} = {default}   ({kind})" for key, kind, default in settings]
    try:
        _, examples = _GYM.call("draw", dataset, {}, 0, 0, 3)
    except ConfigError as error:
        return "\n".join([*lines, "", f"no examples: {error}"])
    for number, entry in enumerate(examples, start=1):
        lines += ["", f"example {number}:", entry["question"], f"answer: {entry['oracle']}"]
    return "\n".join(lines)


def load_gym(section: TaskSection, settings: GymSettings, seed: int, environment: EnvironmentSection) -> Task:
    """Load a reasoning-gym task, whatever the environment; see ``load_task``."""
    dataset = section.name.partition("/")[2]
    writer = find_writer(settings.solution, dataset, settings.import_from)
    scorer = {"name": "reasoning-gym"}
    tables = [
        {"dataset": dataset, "settings": settings.settings} | table if table.get("name") == "reasoning-gym" else table
        for table in settings.verifiers or (scorer,)
    ]
    verifiers = build_verifiers(tables, settings.import_from)
    answer_after = writer.marker if settings.answer_after is None else settings.answer_after
    name = settings.label or section.name
    splits = _GYM.call("draw", dataset, settings.settings, seed, section.num_heldout, section.num_train)
    heldout, train = (
        tuple(_problem(entry, name, settings.template, writer, answer_after) for entry in entries) for entries in splits
    )
    task = make_task(settings, name, (train, heldout), verifiers, answer_after)
    return replace(task, teacher=_careless(writer, answer_after, settings)) if settings.slips else task


def _careless(writer: Writer, answer_after: str, settings: GymSettings) -> Teacher:
    """Return a teacher that makes mistakes from ``slips_after`` on, different ones at every visit.

    Raises:
        ConfigError: the writer's solutions do not consist of totals, or do not end in the marker they are read by.
    """
    if writer.from_totals is None:
        able = ", ".join(name for name, other in WRITERS.items() if other.from_totals is not None)
        raise ConfigError(f"task.slips = {settings.slips} needs a task.solution that states totals: {able}")
    if writer.marker != answer_after:
        raise ConfigError(f"task.slips needs the writer's own task.answer_after, which is {writer.marker!r}")

    def teach(problem: Problem, rng: np.random.Generator, progress: float) -> str:
        slips = settings.slips if progress >= settings.slips_after else 0.0
        return writer.careless(problem.columns["question"], problem.columns, slips, rng)

    return teach


def _problem(entry: dict[str, Any], task: str, template: str, writer: Writer, answer_after: str) -> Problem:
    question, oracle = entry["question"], entry["oracle"]
    columns = {key: entry[key] for key in ("question", "answer", "metadata")}
    solution = None
    if oracle is not None:
        solution = writer.write(question, oracle, columns) + answer_after + oracle
        if find_answer(solution, answer_after) != oracle.strip():
            raise ValueError(
                f"a verifier would not find the answer {oracle!r} in the worked solution {solution!r}; set "
                "task.answer_after to a marker that the answer does not contain"
            )
    prompt, markup = render(template, question, entry["metadata"])
    return Problem(
        problem_id=f"{task}/{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        task=task,
        prompt=prompt,
        markup=markup,
        columns=columns,
        answer=oracle,
        solution=solution,
    )
