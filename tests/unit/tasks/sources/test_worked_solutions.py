"""Worked solutions are right, and say what their documentation says they say."""

import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config import ConfigError, TaskSection
from heliostat.tasks import load_task
from heliostat.tasks.answers import find_answer
from heliostat.tasks.sources.worked_solutions import SLIPS, WRITERS, find_writer

numbers = st.integers(0, 10**6)


def solve(name: str, expression: str) -> str:
    writer = WRITERS[name]
    answer = str(eval(expression))
    return writer.write(f"State the final answer: {expression} =", answer, {}) + writer.marker + answer


@st.composite
def expressions(draw: st.DrawFn) -> str:
    terms = draw(st.lists(st.integers(-(10**5), 10**5), min_size=1, max_size=6))
    signs = draw(st.lists(st.sampled_from("+-"), min_size=len(terms) - 1, max_size=len(terms) - 1))
    return " ".join([str(terms[0]), *(f"{sign} {term}" for sign, term in zip(signs, terms[1:], strict=True))])


@given(expressions())
def test_running_totals_are_a_chain_of_true_equations_that_ends_in_the_answer(expression: str) -> None:
    solution = solve("running-total", expression)
    working, _, answer = solution.rpartition("\n= ")
    assert int(answer) == eval(expression)
    if "=" not in working:  # a single term
        assert int(working) == int(answer)
        return
    total = None
    for step in working.split(", "):
        left, right = step.split("=")
        assert eval(left.replace("--", "- -").replace("+-", "+ -")) == int(right)
        assert total is None or left.startswith(str(total))
        total = int(right)
    assert total == int(answer)


@given(expressions())
def test_a_chain_states_true_totals_and_ends_in_the_answer(expression: str) -> None:
    *steps, answer = solve("chain", expression).split("=")
    assert int(answer) == eval(expression)
    totals = [eval(step.replace("--", "- -").replace("+-", "+ -")) for step in steps]
    assert totals[-1] == int(answer)
    assert all(later.startswith(str(total)) for total, later in zip(totals, steps[1:], strict=False))


def read_column_step(step: str) -> int:
    """Compute one step's result from its columns alone, checking every column."""
    negative = step.startswith("-(")
    columns = step.removeprefix("-(").removesuffix(")").split(",")
    value, carried = 0, 0
    for place, column in enumerate(columns):
        match = re.fullmatch(r"(\d)([+-])(\d)([+-]1)?=([01<])(\d)", column)
        assert match, column
        first, sign, second, with_carry, flag, digit = match.groups()
        assert bool(with_carry) == bool(carried)
        if sign == "+":
            assert int(first) + int(second) + carried == int(flag + digit)
            carried = int(flag)
        else:
            carried_next = int(flag == "<")
            assert int(first) - int(second) - carried == int(digit) - 10 * carried_next
            carried = carried_next
        value += int(digit) * 10**place
    value += carried * 10 ** len(columns) if "+" in columns[0][1] else 0
    return -value if negative else value


@given(expressions())
def test_the_columns_alone_determine_every_total(expression: str) -> None:
    solution = solve("columns", expression)
    working, _, answer = solution.rpartition("#")
    assert int(answer) == eval(expression)
    if not working:  # a single term needs none
        return
    *stated, last = working.split(";")
    for step in stated:
        columns, _, total = step.rpartition(":")
        assert read_column_step(columns) == int(total)
    assert read_column_step(last) == int(answer)


def test_columns_of_two_digit_numbers_are_compact_and_unambiguous() -> None:
    seen: dict[str, int] = {}
    for first in range(100):
        for second in range(100):
            for sign in "+-":
                solution = solve("columns", f"{first} {sign} {second}")
                working, _, answer = solution.rpartition("#")
                assert len(solution) <= 40
                assert seen.setdefault(working, int(answer)) == int(answer)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_worked_solutions_of_the_real_data_set_end_in_its_answers(name: str) -> None:
    section = TaskSection(
        name="reasoning-gym/chain_sum", num_train=2000, num_heldout=50, settings={"allow_negation": True}, solution=name
    )
    task = load_task(section, seed=3)
    assert task.answer_after == WRITERS[name].marker
    for problem in task.train + task.heldout:
        assert find_answer(problem.solution, task.answer_after) == problem.answer == problem.columns["answer"]


def test_the_documented_examples() -> None:
    assert solve("running-total", "47 + 58 - 3") == "47+58=105, 105-3=102\n= 102"
    assert solve("chain", "47 + 58 - 3") == "47+58=105-3=102"
    assert solve("columns", "47 + 58") == "7+8=15,4+5+1=10#105"
    assert solve("columns", "43 - 18") == "3-8=<5,4-1-1=02#25"
    assert solve("columns", "12 - 58") == "-(8-2=06,5-1=04)#-46"


def test_no_writer_means_the_bare_answer() -> None:
    assert find_writer("", "gcd").write("q", "12", {}) == ""


def test_wrong_writers_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'columns'"):
        find_writer("column", "chain_sum")
    with pytest.raises(ConfigError, match="works out chain_sum, basic_arithmetic, not gcd"):
        find_writer("columns", "gcd")
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        find_writer("no_such_module:write", "gcd")


def test_a_question_that_is_no_sum_is_refused() -> None:
    question = "What is " + random.Random(0).choice(["the gcd of 3 and 4?", "3 times 4"])
    with pytest.raises(ValueError, match="cannot read a sum"):
        WRITERS["columns"].write(question, "1", {})


class TestCarelessTeachers:
    @staticmethod
    def parts(text: str) -> tuple[list[tuple[str, int]], int]:
        working, _, answer = text.rpartition("\n= ")
        steps = [step.split("=") for step in working.split(", ")]
        return [(left, int(right)) for left, right in steps], int(answer)

    @given(expressions(), st.integers(0, 2**32))
    def test_without_slips_it_is_the_right_solution(self, expression: str, seed: int) -> None:
        for name in ("running-total", "chain"):
            careless = WRITERS[name].careless(f"{expression} =", {}, 0.0, np.random.default_rng(seed))
            assert careless == solve(name, expression)

    def test_slips_come_at_their_rate_and_are_carried_on(self) -> None:
        rng = np.random.default_rng(0)
        slipped = []
        for _ in range(2000):
            steps, answer = self.parts(WRITERS["running-total"].careless("3 + 4 - 2 + 9 =", {}, 0.3, rng))
            assert answer == steps[-1][1]
            for (_, total), (following, _) in itertools.pairwise(steps):
                assert re.match(r"-?\d+", following)[0] == str(total)  # type: ignore[index]
            slipped += [total - eval(left.replace("--", "- -").replace("+-", "+ -")) for left, total in steps]
        assert set(slipped) == {0, *SLIPS}
        assert abs(np.mean(np.array(slipped) != 0) - 0.3) < 4 * (0.3 * 0.7 / len(slipped)) ** 0.5

    def test_demonstrations_slip_and_problems_keep_their_right_solutions(self) -> None:
        section = TaskSection.model_validate(
            {
                "name": "reasoning-gym/chain_sum",
                "solution": "running-total",
                "slips": 1.0,
                "slips_after": 0.5,
                "num_train": 5,
                "num_heldout": 1,
                "settings": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
            }
        )
        task, rng = load_task(section, 0), np.random.default_rng(0)
        for problem in task.train:
            assert problem.solution is not None
            assert find_answer(problem.solution, task.answer_after) == problem.answer
            assert task.teacher(problem, rng, 0.49) == problem.solution  # not yet
            shown = [task.teacher(problem, rng, 0.5) for _ in range(8)]
            assert problem.solution not in shown
            assert len(set(shown)) > 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"solution": "columns"}, "states totals: running-total, chain"),
            ({}, "states totals"),
            ({"solution": "chain", "answer_after": "#"}, "the writer's own task.answer_after"),
            ({"solution": "chain", "slips": 1.5}, "slips"),
            ({"solution": "chain", "slips": 0.0, "slips_after": 0.5}, "slips is 0"),
        ],
    )
    def test_what_cannot_slip_is_refused(self, settings: dict[str, object], message: str) -> None:
        table = {"name": "reasoning-gym/chain_sum", "slips": 0.5, "num_train": 2, "num_heldout": 1, **settings}
        with pytest.raises(ConfigError, match=message):
            load_task(TaskSection.model_validate(table), 0)
