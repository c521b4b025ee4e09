"""Tasks whose problems the recipe's environment makes itself, one per seed.

    environment.problem(1000) -> {"prompt": "key 37", "answer": "52", "seed": 1000}

Seeds are consecutive, from a start that the run's seed decides; held-out problems come first. An environment without
``problem`` starts every episode with its first observation alone: the prompt is empty, and the row holds the seed.

Left out: running episodes (``environments.pool``). An environment can be used with any other task too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from heliostat.config import ConfigError, EnvironmentSection, TaskSection
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.worlds import SEED_COLUMN
from heliostat.tasks.settings import TaskSettings, build_verifiers, make_task, render
from heliostat.tasks.task import Slips, Task
from heliostat.types import Message, Problem

_FIRST_SEEDS = 2**30  # seeds stay below 2**31, which every generator takes
_NUM_COMPARED = 16  # rows whose prompts are all equal: the prompt does not tell problems apart
_SEEDS_PER_PROBLEM = 20
_MORE_SEEDS = 1000

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EnvironmentTaskSettings(TaskSettings):
    """Keys of an ``environment`` task. Without ``verifiers``, rewards are the environment's own.

    Attributes:
        slips: share of the demonstrations of a warm start that end early or wrongly; the success rate of a model that
            imitates them is at most one minus this.
        slips_after: share of the supervised training before slips begin.
    """

    slips: Annotated[float, Field(ge=0, le=1)] = 0.0
    slips_after: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slips_after and not self.slips:
            raise ValueError(f"slips_after = {self.slips_after} says when slips begin, and slips is 0")


def load_environment(
    section: TaskSection, settings: EnvironmentTaskSettings, seed: int, environment: EnvironmentSection
) -> Task:
    """Load a task from the problems of an environment; see ``load_task``.

    Raises:
        ConfigError: the recipe names no environment.
        ValueError: its rows depend on more than the seed, lack a prompt, or are too few.
    """
    if not environment.name:
        raise ConfigError(
            "task.name = 'environment' takes its problems from the recipe's environment; set environment.name, or use "
            "a 'file' task with environment.tools"
        )
    verifiers = build_verifiers(settings.verifiers, settings.import_from) if settings.verifiers else ()
    own = environment.name.partition(":")[2]
    name = settings.label or (own if own.isidentifier() else environment.name)
    rows = _rows(environment, settings.import_from, random.Random(f"environment {seed}").randrange(_FIRST_SEEDS))
    num = section.num_heldout + section.num_train
    most = _SEEDS_PER_PROBLEM * num + _MORE_SEEDS
    drawn = list(islice(_different(islice(rows, most)), num))
    if len(drawn) < num:
        raise ValueError(
            f"environment '{environment.name}' makes {len(drawn)} different problems from {most} seeds, but "
            f"num_train + num_heldout = {num}; lower task.num_train or task.num_heldout"
        )
    problems = tuple(_problem(row, row_seed, name, settings) for row_seed, row in drawn)
    splits = problems[section.num_heldout :], problems[: section.num_heldout]
    task = make_task(settings, name, splits, verifiers, settings.answer_after or "")
    return replace(task, slips=Slips(settings.slips, settings.slips_after))


def show_environment_task(name: str) -> str:
    """Return the keys of an ``environment`` task with their defaults, as text."""
    default = EnvironmentTaskSettings()
    lines = [f"  {key} = {value!r}" for key, value in vars(default).items()]
    return "\n".join(["environment", "Problems that the recipe's environment makes.", "", "settings:", *lines])


def _rows(environment: EnvironmentSection, import_from: str, first: int) -> Iterator[tuple[int, Row]]:
    """Yield the environment's rows with their seeds, from seed ``first`` on.

    Raises:
        ConfigError: the environment cannot be built.
        ValueError: the same seed gives two different rows.
    """
    from heliostat.tasks.environments.building import build  # it imports adapters of other packages

    spec = environment_of(environment, import_from)
    assert spec is not None
    try:
        make = build(spec)
        instance: Any = make()
    except ConfigError:
        raise
    except Exception as error:  # the environment's own code may raise anything
        raise ConfigError(f"environment '{environment.name}' cannot be built: {_said(error)}") from error
    problem = getattr(instance, "problem", None)
    if not callable(problem):
        yield from ((seed, {"prompt": ""}) for seed in count(first))
        return
    other: Any = make()
    if _row(problem, first, environment.name) != _row(other.problem, first, environment.name):
        raise ValueError(
            f"environment '{environment.name}': problem({first}) returns another row every time; it must be a function "
            "of the seed"
        )
    yield from ((seed, _row(problem, seed, environment.name)) for seed in count(first))


def _row(problem: Callable[[int], Row], seed: int, name: str) -> Row:
    try:
        with _kept_random_states(seed):
            row = problem(seed)
    except Exception as error:  # the environment's own code may raise anything
        raise ValueError(f"environment '{name}': problem({seed}) fails: {_said(error)}") from error
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt", ""), str | list | tuple):
        raise ValueError(f"environment '{name}': problem({seed}) must return a row with a 'prompt', not {row!r:.80}")
    return row


@contextmanager
def _kept_random_states(seed: int) -> Iterator[None]:
    """Seed python's and numpy's global generators for the block, and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (environments draw from it)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _different(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Drop rows that have occurred under another seed, unless all prompts are equal and the seed alone differs.

    Worlds that look alike and are answered alike are different problems if a further column of their rows says so. The
    kinds of questions with few answers would otherwise all be held-out ones, which come first.
    """
    begun = list(islice(rows, _NUM_COMPARED))
    tells_apart = len({repr(row.get("prompt", "")) for _, row in begun}) > 1
    seen: set[str] = set()
    for seed, row in chain(begun, rows):
        key = repr(sorted((name, repr(row[name])) for name in row if name != SEED_COLUMN)) if tells_apart else str(seed)
        if key not in seen:
            seen.add(key)
            yield seed, row


def _problem(row: Row, seed: int, task: str, settings: EnvironmentTaskSettings) -> Problem:
    prompt, answer = row.get("prompt", ""), row.get("answer")
    columns = {key: value for key, value in row.items() if key not in ("prompt", "answer")} | {SEED_COLUMN: seed}
    markup: tuple[tuple[int, int], ...] = ()
    asked: str | tuple[Message, ...]
    if isinstance(prompt, str):
        asked, markup = render(settings.template, prompt, columns)
    else:
        text, _ = render(settings.template, str(prompt[-1]["content"]), columns)
        asked = (*(dict(message) for message in prompt[:-1]), {**prompt[-1], "content": text})
    return Problem(
        problem_id=f"seed-{seed}",
        task=task,
        prompt=asked,
        columns=columns,
        answer=None if answer is None else str(answer),
        markup=markup,
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
