"""What holds for every shipped environment, and the rules of each."""

import random
import sqlite3
import tempfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from heliostat.models.loading.tiny import TOKENIZER_PATH
from heliostat.tasks.environments.building import build
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.shipped import SHIPPED
from heliostat.tasks.environments.shipped.database import Database
from heliostat.tasks.environments.shipped.guess_the_number import GuessTheNumber
from heliostat.tasks.environments.shipped.lookup import Lookup
from heliostat.tasks.environments.shipped.maze import Maze
from heliostat.tasks.environments.shipped.python_expressions import PythonExpressions
from heliostat.tasks.environments.shipped.question import BadCall

VARIANTS = [
    *((name, {}) for name in SHIPPED),
    ("lookup", {"num_hops": 3}),
    ("lookup", {"num_hops": 8}),
    ("calculator", {"num_operations": 6, "max_operand": 999}),
    ("guess-the-number", {"max_number": 1000, "shaped": True}),
    ("maze", {"size": 9, "shaped": True}),
    ("maze", {"size": 2}),
    ("database", {"num_rows": 15, "kinds": ("sum",)}),
    ("python", {"explain": True}),
]
SHORT = ("calculator", "lookup", "guess-the-number", "maze")  # for a tokenizer of 512 tokens
NONSENSE = ["", "say", "get", "x" * 1000, "say 1 2 3", "\ud800", "n" * 50, "1" * 100, "drop table t", "\n", "é", "()"]


def ids(variant):
    name, settings = variant
    return "-".join([name, *(f"{key}={value}" for key, value in settings.items())])


@pytest.fixture(params=VARIANTS, ids=ids)
def environment(request):
    name, settings = request.param
    made = build(EnvironmentSpec(name, settings=settings))()
    yield made
    made.close()


def play(environment, seed, act):
    """Return everything an episode shows, and its steps."""
    row = environment.problem(seed)
    shown, steps = [row, environment.reset(row, seed)], []
    while not (steps and steps[-1].done) and len(steps) < 200:
        steps.append(environment.step(act(len(steps))))
        shown.append((steps[-1].observation, steps[-1].reward))
    return shown, steps


def test_the_oracle_earns_full_marks(environment):
    for seed in range(20):
        _, steps = play(environment, seed, lambda _: environment.oracle())
        assert steps[-1].done
        assert steps[-1].info["success"]
        assert 0 < sum(step.reward or 0 for step in steps) <= 1
        assert not any(step.info.get("errors") for step in steps)


def test_the_world_is_a_function_of_the_seed(environment):
    def act(_):
        return environment.oracle()

    first = [play(environment, seed, act)[0] for seed in (1, 2, 1)]
    assert first[0] == first[2] != first[1]
    random.seed(5)
    state = random.getstate()
    assert play(environment, 1, act)[0] == first[0]
    assert random.getstate() == state  # it draws from a generator of its own


def test_siblings_do_not_disturb_each_other():
    for name in SHIPPED:
        one, other = (build(EnvironmentSpec(name))() for _ in range(2))
        for environment, seed in ((one, 1), (other, 2)):
            environment.reset(environment.problem(seed), seed)
        other.step(other.oracle())
        expected, _ = play(build(EnvironmentSpec(name))(), 1, lambda _: "say 0")
        assert [one.step("say 0").observation] == [expected[2][0]]
        one.close()
        other.close()


def test_nonsense_is_answered_and_earns_nothing(environment):
    for index, nonsense in enumerate(NONSENSE):
        _, steps = play(environment, index, lambda _, said=nonsense: said)
        assert not any(step.reward for step in steps)
        assert all(isinstance(step.observation, str) and len(step.observation) <= 200 for step in steps)


@pytest.mark.slow
def test_problems_are_plentiful():
    for name in SHIPPED:
        environment = build(EnvironmentSpec(name))()
        rows = [environment.problem(seed) for seed in range(2000)]
        worlds = {(row["prompt"], row["answer"]) for row in rows}
        assert len(worlds) > {"guess-the-number": 99}.get(name, 1000), name


@pytest.mark.parametrize("name", SHORT)
def test_turns_are_short_for_the_tiny_tokenizer(name):
    tokenizer = Tokenizer.from_file(str(TOKENIZER_PATH))

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    environment = build(EnvironmentSpec(name))()
    for seed in range(100):
        row = environment.problem(seed)
        assert count(row["prompt"] + (environment.reset(row, seed) or "")) <= 14
        done = False
        while not done:
            action = environment.oracle()
            step = environment.step(action)
            done = step.done
            assert count(action) <= 8
            assert count(step.observation) <= 8


# -- lookup


def test_lookup_needs_its_call():
    """The prompts of two worlds are equal where their answers differ: without the call an answer is a guess."""
    environment = Lookup()
    answers = {}
    for seed in range(3000):
        row = environment.problem(seed)
        answers.setdefault(row["prompt"], []).append(row["answer"])
    best = sum(max(map(said.count, set(said))) for said in answers.values())
    assert best / 3000 < 0.15  # the most frequent answer of every prompt, seen in hindsight
    assert all(len(set(said)) > 10 for said in answers.values())


def test_lookup_answers():
    environment = Lookup(num_keys=3, num_hops=2)
    row = environment.problem(0)
    environment.reset(row, 0)
    key = row["prompt"].split()[1]
    assert row["prompt"] == f"key {key} twice"
    assert environment.step("get 9").observation == "none"
    assert environment.step("what").observation == "get or say"
    final = environment.step(f"get {environment.step(f'get {key}').observation}").observation
    assert final == row["answer"]
    assert environment.step(f"say {final}").reward == 1.0


# -- calculator


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("3 + 4", "7"),
        ("-3 * 12", "-36"),
        ("3-4", "-1"),
        ("5 - -5", "10"),
        ("3 + 4 + 5", "a + b or say"),
        ("2 ** 9", "a + b or say"),
        ("9" * 10 + " + 1", "a + b or say"),
    ],
)
def test_calculator(action, answer):
    environment = build(EnvironmentSpec("calculator"))()
    environment.reset({}, 0)
    assert environment.step(action).observation == answer


def test_calculator_prompts_are_the_arithmetic_that_they_look_like():
    environment = build(EnvironmentSpec("calculator", settings={"num_operations": 4}))()
    for seed in range(200):
        row = environment.problem(seed)
        assert str(eval(row["prompt"])) == row["answer"]


# -- guess-the-number


def test_guessing():
    environment = GuessTheNumber(max_number=10, max_guesses=3, shaped=True)
    row = environment.problem(1)
    number = int(row["answer"])
    environment.reset(row, 1)
    assert environment.step("0").observation == "higher"
    assert environment.step("999").observation == "lower"
    last = environment.step(str(number))
    assert (last.reward, last.done, last.info["success"]) == (pytest.approx(1 / 3), True, True)


def test_halving_always_suffices():
    for max_number in (1, 2, 3, 7, 8, 100):
        environment = GuessTheNumber(max_number)
        for seed in range(60):
            assert play(environment, seed, lambda _, made=environment: made.oracle())[1][-1].reward == 1.0


# -- maze


def test_the_maze_is_a_tree_whose_path_is_the_answer():
    for size in (2, 5, 9):
        environment = Maze(size)
        for seed in range(20):
            row = environment.problem(seed)
            environment.reset(row, seed)
            ways = sum(len(open_ways) for open_ways in environment.open_ways.values())
            assert ways == 2 * (size * size - 1)
            for move in row["answer"]:
                step = environment.step(move)
            assert step.reward == 1.0


def test_walls_stop_and_steps_run_out():
    environment = Maze(size=3, max_steps=2)
    first = environment.reset(environment.problem(0), 0)
    closed = next(way for way in "nesw" if way not in first.split()[2])
    step = environment.step(closed)
    assert (step.observation, step.info["errors"], step.info["invalid"]) == (first, 1, False)
    step = environment.step("up")
    assert (step.done, step.reward, step.info["invalid"]) == (True, 0.0, True)


# -- database


@pytest.fixture
def database():
    environment = Database()
    environment.reset(environment.problem(0), 0)
    yield environment
    environment.close()


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("delete from t", "error: not authorized"),
        ("insert into t values ('x', 1, 1, 'y')", "error: not authorized"),
        ("create table u (x)", "error: not authorized"),
        ("pragma query_only = 0", "error: not authorized"),
        ("attach database '/tmp/x.sqlite' as x", "error: not authorized"),
        ("select load_extension('x')", "error: not authorized to use function: load_extension"),
        ("select random()", "error: not authorized to use function: random"),
        ("select datetime('now')", "error: not authorized to use function: datetime"),
        ("select 1; select 2", "error: You can only execute one statement at a time."),
        ("select height from t", "error: no such column: height"),
        ("with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c", "error: interrupted"),
        ("select replace(name, '', '') from t where 0", "no rows"),
        ("select count(*), 'x' from t", "8, x"),
    ],
)
def test_queries_read_and_nothing_else(database, query, answer):
    assert database.step(query).observation == answer
    assert database.step("select count(*) from t").observation == "8"


def test_an_endless_query_does_not_use_up_the_steps_of_the_next(database):
    for _ in range(3000):
        assert database.step("select count(*) from t").observation == "8"


def test_every_episode_has_a_file_of_its_own_that_closing_deletes(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environments = [Database(), Database()]
    for environment in environments:
        environment.reset(environment.problem(1), 1)
    files = list(tmp_path.glob("*/episode.sqlite"))
    assert len(files) == 2
    with sqlite3.connect(files[0]) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (8,)
    environments[0].reset(environments[0].problem(2), 2)
    assert len(list(tmp_path.glob("*/episode.sqlite"))) == 2
    for environment in environments:
        environment.close()
    assert list(Path(tmp_path).iterdir()) == []


def test_a_blind_database_asks_the_same_and_answers_from_another_table():
    environment, blind = Database(), Database(blind=True)
    misled = 0
    for seed in range(60):
        row = environment.problem(seed)
        assert blind.problem(seed) == row
        environment.reset(row, seed)
        blind.reset(row, seed)
        query = environment.oracle()
        seen, shown = environment.step(query).observation, blind.step(query).observation
        assert seen == row["answer"]
        misled += shown != seen
        assert blind.step(f"say {row['answer']}").reward == 1.0
    environment.close()
    blind.close()
    assert misled > 45


def test_huge_values_are_refused(database):
    assert database.step(f"select '{'x' * 20_000}'").info["errors"] == 1


# -- python


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 ** 10 % 7", "2"),
        ("max(3, 4) + sum([1, 2])", "7"),
        ("divmod(17, 5)", "(3, 2)"),
        ("9 ** 9 ** 9", "error: too large"),
        ("1 << 10 ** 9", "error: too large"),
        ("[0] * 10 ** 6", "error: too large"),
        ("10 ** 6 * [0]", "error: too large"),
        ("'a' * 3", "error: only numbers"),
        ("'%999999999d' % 1", "error: only numbers"),
        ("1 / 0", "error: division by zero"),
        ("__import__('os')", "error: the name '__import__' is not plain data or mathematics"),
        ("(1).real", "error: Attribute is not plain data or mathematics"),
        ("[x for x in [1]]", "error: ListComp is not plain data or mathematics"),
        ("lambda: 1", "error: Lambda is not plain data or mathematics"),
        ("1 +", "error: invalid syntax"),
        ("max(1)", "error: 'int' object is not iterable"),
    ],
)
def test_python_expressions(expression, value):
    environment = PythonExpressions()
    environment.reset({}, 0)
    assert environment.step(expression).observation == value


def test_a_refused_call_says_why():
    with pytest.raises(BadCall, match="error"):
        PythonExpressions().call("1 +")
