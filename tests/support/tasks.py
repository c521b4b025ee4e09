"""Tasks made by hand: a few additions, judged by whatever a test wants."""

from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import Exact, Function
from heliostat.types import Problem

REWARDS = "tests.support.rewards"


def additions(num: int, task: str = "sums") -> tuple[Problem, ...]:
    return tuple(
        Problem(f"{task}/{i}", task, f"{i} + {i + 1} =", {"answer": str(2 * i + 1)}, str(2 * i + 1)) for i in range(num)
    )


def reward(function: str, **arguments: object) -> WeightedVerifier:
    return WeightedVerifier(function, Function(f"{REWARDS}:{function}", arguments))


EXACT = WeightedVerifier("exact", Exact())


def make_task(*verifiers: WeightedVerifier, num: int = 8, **settings: object) -> Task:
    problems = additions(num + 2, str(settings.get("name", "sums")))
    defaults: dict[str, object] = {"name": "sums", "train": problems[:num], "heldout": problems[num:]}
    return Task(**{**defaults, "verifiers": verifiers or (EXACT,), **settings})  # type: ignore[arg-type]
