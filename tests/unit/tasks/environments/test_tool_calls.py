"""Calls are read from text in two forms; a broken call is known as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.tasks.environments.tool_calls import ToolCall, parse_calls

NAMES = ("add", "get")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("The answer is 4.", []),
        ("", []),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', [ToolCall("add", {"a": 1})]),
        ('Think.\n<tool_call>\n{"name": "get"}\n</tool_call>\nDone.', [ToolCall("get", {})]),
        (
            '<tool_call>{"name": "get", "arguments": {}}</tool_call> and <tool_call>{"name": "add"}</tool_call>',
            [ToolCall("get", {}), ToolCall("add", {})],
        ),
        ('<tool_call>{"name": "get", "arguments": {}}', [ToolCall("get", {})]),  # the stop string ate the end
        ('add(1, b=2)\nget("x")', [ToolCall("add", {"b": 2}, (1,)), ToolCall("get", {}, ("x",))]),
        ("  get([1, {'a': -2.5}], flag=None)  ", [ToolCall("get", {"flag": None}, ([1, {"a": -2.5}],))]),
        ("unknown(3)", [ToolCall("unknown", {}, (3,))]),
        ("f(x) is a function", []),
        ("f(x)", []),
        ("I call add(1, 2) now", []),
        ('<tool_call>{"name": "get"}</tool_call>\nadd(1)', [ToolCall("get", {})]),
    ],
)
def test_forms(text, calls):
    assert parse_calls(text, NAMES) == calls


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{name: add}</tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "add(1",
        "add(x)",
        "add(**{'a': 1})",
        "add(1)(2)",
        "add(__import__('os'))",
        "get(" + "(" * 300 + ")" * 300 + ")",
    ],
)
def test_a_broken_call_is_one_line_that_says_so(text):
    (call,) = parse_calls(text, NAMES)
    assert call.problem
    assert "\n" not in call.problem
    assert len(call.problem) < 120


def test_the_setting_decides_which_form_is_read():
    json_call, python_call = '<tool_call>{"name": "get"}</tool_call>', "get()"
    assert [len(parse_calls(json_call, NAMES, form)) for form in ("auto", "json", "python")] == [1, 1, 0]
    assert [len(parse_calls(python_call, NAMES, form)) for form in ("auto", "json", "python")] == [1, 0, 1]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_read_without_an_exception(text):
    parse_calls(text, NAMES)
    parse_calls(f"add({text})", NAMES)
    parse_calls(f"<tool_call>{text}</tool_call>", NAMES)
