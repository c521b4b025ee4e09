"""Numbers as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.tasks.numerals import last_number, parse_number, same_number

decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3)


@given(decimals)
def test_every_common_way_of_writing_a_number_means_that_number(value: Decimal) -> None:
    plain, grouped = f"{value:f}", f"{value:,f}"
    for text in (plain, grouped, f" {plain}\n", f"{plain}.", f"{plain}%", f"{value:e}", grouped.replace("-", "−")):
        if text.endswith("..") or (text.endswith(".") and "." not in plain):
            continue
        assert parse_number(text) == value, text
    if value >= 0:
        assert parse_number(f"+{plain}") == value
        assert parse_number(f"${grouped}") == value
    assert parse_number(f"-${abs(value):,f}") == -abs(value)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_a_fraction_is_its_quotient(numerator: int, denominator: int) -> None:
    value = parse_number(f"{numerator}/{denominator}")
    assert value is not None
    assert same_number(value * denominator, Decimal(numerator), 1e-12)


NOT_NUMBERS = ["", " ", ".", "-", "$", "%", "nan", "inf", "-Infinity", "0x10", "1_000", "1,00", "1,0000", "1 2", "1+1"]
NOT_NUMBERS += [
    "1/0",
    "1//2",
    "--1",
    "+-1",
    "1e",
    "e5",
    "１２",
    "twelve",
    "3 apples",
    "__import__('os')",
    "1e99999999999",
]


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_anything_else_is_no_number(text: str) -> None:
    assert parse_number(text) is None


def test_a_huge_exponent_costs_nothing_and_equals_only_itself() -> None:
    huge = parse_number("1e999999")
    assert huge is not None
    assert not same_number(huge, Decimal(1), 0.5)
    assert same_number(huge, huge, 0.0)


@given(st.integers(-(10**18), 10**18))
def test_whole_numbers_must_be_equal_whatever_the_tolerance(value: int) -> None:
    assert same_number(Decimal(value), Decimal(f"{value}.000"), 0.0)
    assert not same_number(Decimal(value), Decimal(value + 1), 0.999)


def test_tolerance_is_relative_above_one_and_absolute_below() -> None:
    assert same_number(Decimal("1000.1"), Decimal("1000.0005"), 1e-3)
    assert not same_number(Decimal("1002.1"), Decimal("1000.0005"), 1e-3)
    assert same_number(Decimal("0.0015"), Decimal("0.001"), 1e-3)
    assert not same_number(Decimal("0.0025"), Decimal("0.001"), 1e-3)


def test_the_last_number_of_a_text() -> None:
    assert last_number("first 3, then -4.5 and finally 1,200.") == Decimal(1200)
    assert last_number("x2 has none of its own") is None
    assert last_number("nothing") is None


HOSTILE = {
    "spaces": " " * 100_000,
    "spaces after a sign": "+" + " " * 100_000 + "x",
    "spaces after a currency": "$" + " " * 100_000 + "x",
    "spaces around a currency": "-" + " " * 50_000 + "$" + " " * 50_000 + "x",
    "spaces after a number": "1" + " " * 100_000 + "x",
    "spaces around a percent sign": "1" + " " * 50_000 + "%" + " " * 50_000 + "x",
    "spaces around a fraction": "1" + " " * 50_000 + "/" + " " * 50_000 + "x",
    "numbers and spaces": "1 " * 50_000 + "/",
    "thousands": "1" + ",111" * 25_000 + "x",
    "digits": "1" * 100_000 + "x",
    "points": "1." * 50_000 + "x",
    "exponents": "1e" * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_linear_time(name: str) -> None:
    """100,000 characters are judged within the limit of one verdict; quadratic matching takes minutes."""
    from heliostat.tasks import VerifierPool
    from heliostat.tasks.task import WeightedVerifier
    from heliostat.tasks.verifiers import Numeric
    from tests.unit.tasks.tasks_for_tests import make_task

    verifiers = [WeightedVerifier(read, Numeric(read=read)) for read in ("whole", "last")]
    task = make_task(*verifiers)
    with VerifierPool([task]) as pool:
        (inner,) = pool.judge(task.train[0], [f"x{HOSTILE[name]}"]).result()
        (whole,) = pool.judge(task.train[0], ["x", HOSTILE[name]]).result()[1:]
    assert (inner.failure, whole.failure) == ("", "")
