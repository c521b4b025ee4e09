"""Schemas equal those of transformers, and arguments are checked against them."""

from typing import Any, Literal, Optional, Union

import pytest

from heliostat.tasks.environments.tool_schemas import describe_type, find_mismatch, fits, schema_of
from tests.support.environment_classes import TRLSafe, add, fail, weigh


def many(
    whole: int,
    number: float = 1.0,
    text: Optional[str] = None,  # noqa: UP045  as users write it
    choice: Literal["a", "b"] = "a",
    numbers: list[int] = [],  # noqa: B006
    table: dict[str, float] = {},  # noqa: B006
    both: Union[str, int] = 3,  # noqa: UP007
    flag: bool = False,
    pair: tuple[int, str] = (1, "a"),
    anything: Any = None,
    nested: list[list[str]] = [],  # noqa: B006
    bare: list = [],  # noqa: B006
    three: int | str | None = None,
) -> float:
    """Do many things.

    In two paragraphs,
    of which the second has two lines.

    Args:
        whole: A number
            that is whole.
        number: A number.
        text: A text (perhaps).
        choice: One of two.
        numbers: Some numbers.
        table: A table.
        both: Either.
        flag: A flag.
        pair: A pair.
        anything: Anything.
        nested: Lists.
        bare: A list.
        three: Any of three.

    Returns:
        The result: a number.

    Raises:
        ValueError: never.
    """
    return number


def nothing() -> str:
    """Take nothing.

    Returns:
        A text.
    """
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("function", [many, nothing, add, weigh, fail, TRLSafe().digit, TRLSafe().enter])
def test_schemas_are_those_of_transformers(function):
    from transformers.utils import get_json_schema

    assert schema_of(function) == get_json_schema(function)


def test_a_union_of_containers_keeps_its_members():
    def pick(what: list[int] | str) -> None:
        """Pick.

        Args:
            what: Either.
        """

    parameters = schema_of(pick)["function"]["parameters"]
    assert find_mismatch({"what": [1, 2]}, parameters) == find_mismatch({"what": "all"}, parameters) == ""
    assert find_mismatch({"what": ["x"]}, parameters) == "argument 'what' must be array or string"


def no_docstring(a: int) -> int:
    return a


def no_type(a) -> int:
    """Have no type.

    Args:
        a: A number.
    """
    return a


def no_description(a: int) -> int:
    """Have no description of a."""
    return a


def star(*a: int) -> int:
    """Take any number.

    Args:
        a: Numbers.
    """
    return sum(a)


def strange(a: bytes) -> int:
    """Take bytes.

    Args:
        a: Bytes.
    """
    return len(a)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_docstring, "tool 'no_docstring' needs a docstring"),
        (no_type, "tool 'no_type' needs a type for 'a', like a: str"),
        (no_description, "tool 'no_description' needs a line 'a: …' under 'Args:'"),
        (star, "tool 'star' takes '\\*a: int', but a model calls it by argument names"),
        (strange, "tool 'strange': <class 'bytes'> has no JSON form"),
    ],
)
def test_an_incomplete_tool_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        schema_of(function)


@pytest.mark.parametrize(
    ("value", "name", "fitting"),
    [
        (3, "whole", True),
        (True, "whole", False),
        (3.0, "whole", False),
        ("3", "whole", False),
        (3, "number", True),
        (None, "text", True),
        (None, "whole", False),
        ("b", "choice", True),
        ("c", "choice", False),
        ([1, 2], "numbers", True),
        ([1, "2"], "numbers", False),
        ({"a": 1}, "table", True),
        ({"a": "x"}, "table", False),
        ("x", "both", True),
        (1.5, "both", False),
        ([1, "a"], "pair", True),
        (["a", 1], "pair", False),
        ([1, "a", 2], "pair", False),
        ([["a"], []], "nested", True),
        ([[1]], "nested", False),
        (object(), "anything", True),
    ],
)
def test_values_fit_their_declared_types(value, name, fitting):
    assert fits(value, schema_of(many)["function"]["parameters"]["properties"][name]) is fitting


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"a": 1}, ""),
        ({"a": 1, "b": 2}, ""),
        ({"b": 2}, "argument 'a' is missing"),
        ({"a": 1, "c": 2}, "no argument 'c'; it takes: a, b"),
        ({"a": "1"}, "argument 'a' must be integer"),
    ],
)
def test_mismatches_are_named(arguments, problem):
    assert find_mismatch(arguments, schema_of(add)["function"]["parameters"]) == problem


def test_types_in_words():
    properties = schema_of(many)["function"]["parameters"]["properties"]
    assert describe_type(properties["choice"]) == "one of a, b"
    assert describe_type(properties["text"]) == "string or null"
