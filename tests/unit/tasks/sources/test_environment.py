"""Problems that an environment makes: one per seed, different ones, and never on both sides of the split."""

import random

import numpy as np
import pytest

from heliostat.config import ConfigError, EnvironmentSection, TaskSection
from heliostat.tasks import Task, load_task, show_task
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.contract import Environment, EnvironmentSpec
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.types import Problem


class Sums(Environment):
    """Problems of two numbers below ``most``; its rows come from a generator of the seed."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def problem(self, seed: int) -> dict:
        a, b = random.Random(seed).sample(range(self.most), 2)
        return {"prompt": f"{a} + {b}", "answer": a + b, "size": self.most}


class Secret(Sums):
    """A number to be guessed: the prompt is always the same."""

    def problem(self, seed: int) -> dict:
        return {"prompt": "guess", "answer": str(seed % 5), "seed": seed}


class Careless(Sums):
    """Draws from the global generators."""

    def problem(self, seed: int) -> dict:
        return {"prompt": f"{random.random()} {np.random.random()}"}  # noqa: NPY002


class Chat(Sums):
    """Prompts of several messages."""

    def problem(self, seed: int) -> dict:
        return {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": f"Q{seed}"}]}


class Unseeded(Sums):
    """Another row every time."""

    def problem(self, seed: int) -> dict:
        return {"prompt": str(random.SystemRandom().random())}


class Broken(Sums):
    """No row at all."""

    def problem(self, seed: int) -> dict:
        raise KeyError("word list")


class Silent(Environment):
    """Makes no problems."""


def load(world: str, num_train: int = 30, num_heldout: int = 10, seed: int = 0, own=None, **keys) -> Task:
    section = TaskSection(name="environment", num_train=num_train, num_heldout=num_heldout, **keys)
    return load_task(section, seed, EnvironmentSection(name=f"{__name__}:{world}", **(own or {})))


def test_problems_are_different_and_named_by_their_seeds() -> None:
    task = load("Sums")
    problems = [*task.heldout, *task.train]
    assert (task.name, len(task.train), len(task.heldout), task.verifiers) == ("Sums", 30, 10, ())
    seeds = [problem.columns["seed"] for problem in problems]
    assert [problem.problem_id for problem in problems] == [f"seed-{seed}" for seed in seeds]
    assert seeds == sorted(set(seeds))
    for problem in problems:
        row = Sums().problem(problem.columns["seed"])
        assert (problem.prompt, problem.answer) == (row["prompt"], str(row["answer"]))
        assert problem.columns == {"size": 1000, "seed": seed_of(problem)}
    assert len({problem.prompt for problem in problems}) == 40


def test_questions_with_few_answers_are_as_frequent_in_training_as_among_heldout_ones() -> None:
    """A prompt and an answer do not make a problem where the world behind them is another one."""
    section = TaskSection(name="environment", num_train=400, num_heldout=100)
    task = load_task(section, 0, EnvironmentSection(name="database"))
    for split in (task.heldout, task.train):
        counts = [problem.prompt.startswith("how many") for problem in split]
        assert 0.15 < sum(counts) / len(counts) < 0.35
    tables = {repr(problem.columns["table"]) for problem in (*task.heldout, *task.train)}
    assert len(tables) == 500


def test_heldout_problems_depend_on_the_runs_seed_and_not_on_the_number_of_others() -> None:
    assert load("Sums").heldout == load("Sums", num_train=3).heldout
    first, second = ({p.problem_id for p in load("Sums", seed=seed).heldout} for seed in (0, 1))
    assert not first & second


def test_equal_problems_of_other_seeds_are_skipped() -> None:
    task = load("Sums", num_train=10, num_heldout=2, own={"most": 4})  # 12 ordered pairs
    asked = [problem.prompt for problem in (*task.heldout, *task.train)]
    assert len(set(asked)) == 12
    with pytest.raises(
        ValueError, match=r"makes 12 different problems from 1260 seeds, but num_train \+ num_heldout = 13"
    ):
        load("Sums", num_train=11, num_heldout=2, own={"most": 4})


def test_where_the_prompt_says_nothing_every_seed_is_a_problem() -> None:
    task = load("Secret")
    assert len({problem.problem_id for problem in (*task.heldout, *task.train)}) == 40
    assert {problem.prompt for problem in task.train} == {"guess"}
    silent = load("Silent")
    assert {(problem.prompt, problem.answer) for problem in silent.train} == {("", None)}
    assert row_of(silent.train[0]) == {"prompt": "", "answer": None, "seed": seed_of(silent.train[0])}


def test_global_generators_are_seeded_for_a_row_and_left_alone() -> None:
    random.seed(5)
    before = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    assert load("Careless").train == load("Careless").train
    assert (random.getstate(), str(np.random.get_state())) == before  # noqa: NPY002


def test_the_recipes_template_and_messages() -> None:
    assert load("Sums", template="{question} of {size}?").train[0].prompt.endswith(" of 1000?")
    problem = load("Chat").train[0]
    assert problem.prompt[1] == {"role": "user", "content": f"Q{problem.columns['seed']}"}
    assert row_of(problem)["prompt"] == list(problem.prompt)


def test_verifiers_are_those_asked_for() -> None:
    task = load("Sums", verifiers=[{"name": "exact"}])
    assert [weighted.name for weighted in task.verifiers] == ["exact"]


@pytest.mark.parametrize(
    ("world", "error", "message"),
    [
        ("Unseeded", ValueError, r"problem\(\d+\) returns another row every time"),
        ("Broken", ValueError, r"problem\(\d+\) fails: KeyError: 'word list'"),
        (
            "Missing",
            ConfigError,
            r"environment: .*test_environment:Missing': module .* has no function 'Missing'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(world, error, message) -> None:
    with pytest.raises(error, match=message):
        load(world)


def test_an_environment_task_needs_an_environment() -> None:
    with pytest.raises(ConfigError, match=r"set environment\.name"):
        load_task(TaskSection(name="environment"), 0)
    with pytest.raises(ConfigError, match="slips_after"):
        load("Sums", slips_after=0.5)
    assert "slips = 0.0" in show_task("environment")


def test_other_tasks_leave_the_reward_to_an_environment(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "go {number}", "start": {number}}}\n' for number in range(9)))
    section = TaskSection(name="file", path=str(path), num_train=6, num_heldout=3)
    with pytest.raises(ConfigError, match=r"needs task\.verifiers"):
        load_task(section, 0)
    with pytest.raises(ConfigError, match=r"needs task\.verifiers"):  # tools alone give no reward
        load_task(section, 0, EnvironmentSection(name="", tools=("m:f",)))
    task = load_task(section, 0, EnvironmentSection(name=f"{__name__}:Silent"))
    assert task.verifiers == ()
    problem = task.train[0]
    assert row_of(problem) == {"prompt": problem.prompt, "answer": None, "start": problem.columns["start"]}


def test_seeds_are_those_of_the_rows_or_of_the_problem_itself() -> None:
    assert seed_of(Problem("a", "t", "?", columns={"seed": 7})) == 7
    plain = [seed_of(Problem(name, task, "?")) for name in "ab" for task in "tu"]
    assert len(set(plain)) == 4
    assert plain == [seed_of(Problem(name, task, "!")) for name in "ab" for task in "tu"]
    assert all(0 <= seed < 2**31 for seed in plain)
    assert seed_of(Problem("a", "t", "?", columns={"seed": "7"})) == plain[0]


def test_the_environment_of_a_section() -> None:
    section = EnvironmentSection(name="lookup", timeout_s=2.0, num_workers=3, num_keys=5)
    expected = EnvironmentSpec("lookup", (), {"num_keys": 5}, "/here", timeout_s=2.0, num_workers=3)
    assert environment_of(section, "/here") == expected
    assert environment_of(EnvironmentSection(name="lookup", import_from="/own")).import_from == "/own"
    assert environment_of(EnvironmentSection(name="")) is None
    with pytest.raises(ConfigError, match=r"num_kyes.*num_keys"):
        environment_of(EnvironmentSection(name="lookup", num_kyes=5))
