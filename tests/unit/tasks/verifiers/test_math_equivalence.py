r"""Which texts commit to which answers: tables of forms, and properties over them."""

import re

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.tasks.verifiers.math_equivalence import MAX_LENGTH, read, same
from tests.unit.tasks.verifiers.answer_forms import forms, pairs

DRESSES = [
    "{}",
    " {}\n",
    "**{}**",
    "${}$",
    r"\[ {} \]",
    r"\({}\).",
    r"\boxed{{{}}}",
    r"So the answer is $\boxed{{{}}}$.",
    "The answer is {}.",
    "Answer: {}",
    "#### {}",
    "The final answer is ${}$",
    "<answer>{}</answer>",
    "We have $x=1$ and then:\n$$\n{}\n$$",
]


@pytest.mark.slow
@pytest.mark.parametrize("dress", DRESSES)
def test_every_form_accepts_itself_in_every_dress(dress: str) -> None:
    assert len(forms()) > 300
    assert [form for form in forms() if not same(form, dress.format(form))] == []


@pytest.mark.slow
def test_two_ways_to_write_one_answer() -> None:
    assert [pair for pair in pairs("same") if not same(*pair)] == []


@pytest.mark.slow
def test_neighbours_are_refused() -> None:
    assert len(pairs("different")) > 200
    assert [pair for pair in pairs("different") if same(*pair)] == []


@pytest.mark.slow
def test_nothing_commits_to_an_answer_by_being_empty() -> None:
    assert [form for form in forms() for text in ("", r"\boxed{}", "()") if same(form, text)] == []


@pytest.mark.slow
def test_another_digit_is_another_answer() -> None:
    wrong = []
    for form in forms():
        for match in re.finditer(r"\d", form):
            other = f"{form[: match.start()]}{(int(match[0]) + 1) % 10}{form[match.end() :]}"
            if same(form, other):
                wrong.append((form, other))
    assert set(wrong) == EQUAL_ANYWAY


EQUAL_ANYWAY = {(r"{5 \choose 2}", r"{5 \choose 3}"), (r"17 \mod 5", r"27 \mod 5")}


@pytest.mark.slow
def test_what_math_verify_accepts_for_itself_is_not_lost() -> None:
    """No form that math-verify reads is refused here, and the table holds some that it cannot read."""
    by_library = [
        form for form in forms() if math_verify.verify(math_verify.parse(f"${form}$"), math_verify.parse(f"${form}$"))
    ]
    assert 250 < len(by_library) < len(forms())
    assert all(same(form, f"${form}$") for form in by_library)


numbers = st.decimals(min_value=-(10**9), max_value=10**9, places=3).filter(lambda value: value != 0)


@pytest.mark.slow
@given(numbers)
@settings(max_examples=50, deadline=None)
def test_a_number_is_itself_in_every_notation_and_no_other(value: object) -> None:
    plain, grouped = f"{value:f}", f"{value:,f}"
    for text in (
        plain,
        grouped,
        grouped.replace(",", r"\,"),
        grouped.replace(",", "{,}"),
        plain.replace("-", "−"),
        f"{plain}0",
    ):
        assert same(plain, text), text
        assert not same(plain, text.replace("-", "") if "-" in text else f"-{text}"), text


@given(st.integers(-99, 99).filter(bool), st.integers(1, 99), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_fraction_is_itself_in_every_notation_and_no_other(numerator: int, denominator: int, factor: int) -> None:
    answer = rf"\frac{{{numerator}}}{{{denominator}}}"
    for text in (f"{numerator}/{denominator}", rf"\dfrac{{{numerator * factor}}}{{{denominator * factor}}}"):
        assert same(answer, text)
    assert not same(answer, rf"\frac{{{numerator}}}{{{denominator + 1}}}")
    assert not same(answer, rf"\frac{{{numerator + 1}}}{{{denominator}}}")


@pytest.mark.slow
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True), st.randoms())
@settings(max_examples=10, deadline=None)
def test_order_counts_in_parentheses_and_not_in_braces_or_bare_lists(values: list[int], random: object) -> None:
    mixed = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    listed, shuffled = ", ".join(map(str, values)), ", ".join(map(str, mixed))
    assert same(listed, shuffled)
    assert same(rf"\{{{listed}\}}", rf"\{{{shuffled}\}}")
    assert same(f"({listed})", f"({shuffled})") == (values == mixed)
    assert not same(f"({listed})", rf"\{{{listed}\}}")
    assert not same(listed, ", ".join(map(str, values[1:])))
    assert not any(same(str(value), listed) for value in values)


@pytest.mark.slow
def test_the_same_holds_in_the_sealed_process_that_judges() -> None:
    """Nothing that a comparison needs is closed there, and no wrong neighbour costs a failure."""
    from heliostat.tasks import VerifierPool
    from heliostat.tasks.task import WeightedVerifier
    from heliostat.tasks.verifiers.builtin import Math
    from heliostat.types import Problem
    from tests.support.tasks import make_task

    tables = [(pair, name == "same") for name in ("same", "different") for pair in pairs(name)]
    problems = tuple(Problem(f"p{n}", "sums", "q", {}, gold) for n, ((gold, _), _) in enumerate(tables))
    task = make_task(WeightedVerifier("math", Math()), train=problems, timeout_s=60.0)
    with VerifierPool([task]) as pool:
        judged = [pool.judge(problem, [text]) for problem, ((_, text), _) in zip(problems, tables, strict=True)]
        verdicts = [future.result()[0] for future in judged]
    assert [verdict.failure for verdict in verdicts if verdict.failure] == []
    assert [pair for (pair, right), verdict in zip(tables, verdicts, strict=True) if verdict.success != right] == []


def test_lenient_forgives_signs_and_roundings_and_nothing_else() -> None:
    forgiven = [
        (r"50\%", "50"),
        (r"50\%", "0.5"),
        (r"90^\circ", "90"),
        ("0.333333", "1/3"),
        ("1.41421356", r"\sqrt{2}"),
    ]
    assert [pair for pair in forgiven if not same(*pair, lenient=True)] == []
    assert [pair for pair in forgiven if same(*pair)] == []
    forgiven.append(("3.14159265358979", r"\pi"))
    others = [pair for pair in pairs("different") if pair not in forgiven and set("%^.") & set("".join(pair))]
    assert [pair for pair in others if same(*pair, lenient=True)] == []


def test_what_is_too_long_or_too_deep_is_compared_as_text() -> None:
    long = "+".join(["1"] * MAX_LENGTH)
    deep = r"\frac{1}{" * 60 + "2" + "}" * 60
    for text in (long, deep):
        assert not any(answer.is_mathematics for answer in read(text))
        assert same(text, text)
        assert not same("1", text)


HOSTILE = {
    "boxes": r"\boxed{" * 20_000,
    "mathematics": "$x$ " * 20_000,
    "dollars": "$" * 100_000,
    "wrappers": r"\text{" * 20_000,
    "braces": "{" * 100_000,
    "parentheses": "(" * 100_000,
    "brackets": r"\[" * 50_000,
    "digits": "1" * 200_000,
    "digits and commas": "1," * 50_000,
    "digits and spaces": "1 " * 50_000,
    "ratios": "1:" * 50_000,
    "answers": "answer is " * 10_000,
    "equations": "= 1 " * 30_000,
    "prices": "$7, or " * 10_000,
    "stars": "**" * 50_000,
    "ors": "or " * 30_000,
    "leads": "so " * 30_000,
    "words": "The " * 30_000 + "answer " * 10_000,
    "commands": r"\left" * 20_000,
    "fractions": "½" * 20_000,
    "letters": "x" * 100_000,
    "spaces": " " * 100_000,
    "lines": "\n" * 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_linear_time(name: str) -> None:
    """A hundred thousand characters are read in a second or so; anything quadratic takes minutes."""
    assert not same("42", HOSTILE[name])
    assert not same("42", f"${HOSTILE[name]}$")
    assert not same("42", f"x{HOSTILE[name]}x")
