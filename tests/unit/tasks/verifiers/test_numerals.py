"""Numbers as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.tasks.verifiers.numerals import last_number, meets, parse_number, same_number

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


WRITTEN = [
    ("- 5", "-5"),
    ("−5", "-5"),
    ("+5", "5"),
    ("5.", "5"),
    (".5", "0.5"),
    ("1 000", "1000"),
    ("1\u00a0000", "1000"),
    ("1\u202f234\u202f567", "1234567"),
    (r"1\,000", "1000"),
    ("1{,}000", "1000"),
    ("1,00,000", "100000"),
    (r"\$18", "18"),
    ("18 €", "18"),
    ("-$1,200.50", "-1200.5"),
    ("18%", "18"),
    (r"18\%", "18"),
    ("1e3", "1000"),
    ("1.2 x 10^3", "1200"),
    ("1.2 × 10³", "1200"),
    (r"1.2 \times 10^{-3}", "0.0012"),
    (r"\frac{1}{2}", "0.5"),
    (r"-\frac34", "-0.75"),
    ("½", "0.5"),
    ("2½", "2.5"),
    ("5 1/2", "5.5"),
    ("-5 1/2", "-5.5"),
    ("5 million", "5000000"),
    ("1.5 thousand", "1500"),
    ("5k", "5000"),
]


@pytest.mark.parametrize(("text", "value"), WRITTEN)
def test_what_people_write(text: str, value: str) -> None:
    assert parse_number(text) == Decimal(value)
    for sentence in ("{}", "It is {}.", "It is {} in all", "12 or 3, so: {}", "**{}**", r"\boxed{{{}}}", "#### {}"):
        assert last_number(sentence.format(text)) == Decimal(value), sentence


def test_every_written_form_refuses_its_neighbours() -> None:
    for text, value in WRITTEN:
        for other in (-Decimal(value), Decimal(value) * 10, Decimal(value) + 1):
            assert parse_number(text) != other


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("answer: 5 apples", 5),
        ("18km", 18),
        ("48 + 24 = 72", 72),
        ("72 (since 48 + 24 = 72)", 72),
        ("48 - 24", 24),
        ("from 5 to -10", -10),
        ("5-10", 10),
        ("minus 5", -5),
        ("a loss of negative 5", -5),
        ("x = - 3", -3),
        ("at 10:30 there were 3", 3),
        ("3 on 2024-05-06", 3),
        ("4 is H2O", 4),
    ],
)
def test_which_number_is_the_last(text: str, value: int) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["1,2345", "2,5", "1.234,5", "3.0.3", "x^3", "x^{3}", "2^10", "a_1", "10:30", "2024-05-06", "5/0", "1/2/3", "٣"],
)
def test_a_last_number_that_cannot_be_read_is_none_and_not_a_part_of_it(text: str) -> None:
    assert last_number(text) is None
    assert last_number(f"it was 7, then {text}") in (None, Decimal(7))


@given(st.integers(-(10**6), 10**6), st.decimals(min_value=-100, max_value=100, places=4))
def test_an_answer_written_as_a_whole_number_is_met_exactly(answer: int, gap: Decimal) -> None:
    assert meets(Decimal(answer) + gap, Decimal(answer), 0.9) == (gap == 0)
    assert meets(Decimal(answer) + Decimal("0.5"), Decimal(f"{answer}.0"), 0.9)


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
    "grouped by spaces": "1" + " 111" * 25_000 + " 1",
    "grouped as in India": "1" + ",11" * 33_000 + "x",
    "fractions": "½" * 20_000,
    "mixed numbers": "1 1/" * 25_000,
    "powers": "1 x 10^" * 14_000,
    "times": "1:" * 50_000,
    "dates": "2024-" * 20_000,
    "minus": "minus " * 16_000,
    "names": "x1" * 50_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_linear_time(name: str) -> None:
    """100,000 characters are judged within the limit of one verdict; quadratic matching takes minutes."""
    from heliostat.tasks import VerifierPool
    from heliostat.tasks.task import WeightedVerifier
    from heliostat.tasks.verifiers.builtin import Numeric
    from tests.support.tasks import make_task

    verifiers = [WeightedVerifier(read, Numeric(read=read)) for read in ("whole", "last")]
    task = make_task(*verifiers)
    with VerifierPool([task]) as pool:
        (inner,) = pool.judge(task.train[0], [f"x{HOSTILE[name]}"]).result()
        (whole,) = pool.judge(task.train[0], ["x", HOSTILE[name]]).result()[1:]
    assert (inner.failure, whole.failure) == ("", "")
