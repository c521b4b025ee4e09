"""What each verifier accepts and refuses."""

import pytest

from heliostat.named_imports import resolve
from heliostat.tasks.verifiers.builtin import Exact, Function, Math, Numeric, Sample, parameters
from tests.support.tasks import REWARDS


def sample(text: str, answer: str | None = "42", prompt: object = "q", **columns: object) -> Sample:
    return Sample(prompt, answer, columns, text)  # type: ignore[arg-type]


def test_exact_forgives_surrounding_whitespace_and_nothing_else() -> None:
    check = Exact().prepare()
    assert check(sample(" 42\n")) == 1.0
    assert check(sample("42.")) == 0.0
    assert check(sample("yes", "Yes")) == 0.0
    assert Exact(ignore_case=True).prepare()(sample("yes", "Yes")) == 1.0


def test_numeric_reads_one_number_or_the_last_one() -> None:
    whole, last = Numeric().prepare(), Numeric(read="last").prepare()
    assert whole(sample("+42.0")) == last(sample("+42.0")) == 1.0
    assert whole(sample("it is 42")) == 0.0
    assert last(sample("it is 42")) == 1.0
    assert last(sample("42, no: 43")) == 0.0
    assert Numeric(tolerance=0.1).prepare()(sample("3.1", "3.14159")) == 1.0
    assert Numeric().prepare()(sample("3.1", "3.14159")) == 0.0


def test_numeric_refuses_an_oracle_answer_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="'forty-two' is not a number"):
        Numeric().prepare()(sample("42", "forty-two"))


@pytest.mark.parametrize("tolerance", [-1e-9, 1.0, float("nan")])
def test_numeric_refuses_a_senseless_tolerance(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        Numeric(tolerance=tolerance)


RIGHT = [("1/2", "0.5"), (r"\frac{1}{2}", r"$\frac12$"), (r"\sqrt{8}", r"2\sqrt2"), ("x^2+1", "1+x^2")]
RIGHT += [("$72$", "72"), ("72", r"we get $48+24=72$, so \boxed{72}"), (r"\{1,2\}", r"\{2, 1\}"), ("7", "7 apples")]
WRONG = [("1/2", "1/3"), ("42", "42 7"), ("42", "7 42"), ("42", "The answer is not 42 but 7."), ("42", "")]
WRONG += [("42", "$"), ("x^2+1", "x^2"), ("3", "__import__('os').getpid()")]


def test_math_compares_as_mathematics() -> None:
    check = Math().prepare()
    assert [pair for pair in RIGHT if check(sample(pair[1], pair[0])) != 1.0] == []
    assert [pair for pair in WRONG if check(sample(pair[1], pair[0])) != 0.0] == []


def test_a_function_gets_lists_of_length_one_and_only_what_it_names() -> None:
    check = Function(f"{REWARDS}:good").prepare()
    assert check(Sample("q", None, {"answer": "42", "unasked": object()}, "42")) == 1.0
    assert check(Sample("q", None, {"answer": "43"}, "42")) == 0.0


def test_a_function_sees_chat_prompts_and_completions_as_messages() -> None:
    check = Function(f"{REWARDS}:chat").prepare()
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "echo"}]
    assert check(sample("echo", prompt=prompt)) == 1.0
    assert check(sample("other", prompt=prompt)) == 0.0


def test_a_function_takes_settings_may_be_asynchronous_and_may_not_apply() -> None:
    assert Function(f"{REWARDS}:scaled", {"factor": 0.25}).prepare()(sample("x")) == 0.25
    assert Function(f"{REWARDS}:asynchronous").prepare()(sample("x")) == 1.0
    assert Function(f"{REWARDS}:never_applies").prepare()(sample("x")) is None


def test_parameters_of_a_function() -> None:
    assert parameters(resolve(f"{REWARDS}:good")) == {"prompts", "completions", "answer"}
    assert parameters(resolve(f"{REWARDS}:always")) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [("no_such_module:f", "cannot import"), (f"{REWARDS}:no_such", "no function"), (f"{REWARDS}:HERE", "no function")],
)
def test_a_function_that_is_not_there(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(path)
