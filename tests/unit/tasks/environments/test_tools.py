"""Tools answer calls; every mistake of the model is one line that it can read."""

import pytest

from heliostat.nested_runs import NestedRun
from heliostat.tasks.environments.tools import MAX_MESSAGE, ToolBox, ToolEnvironment, WithTools
from tests.support.environment_classes import Counter, add, fail, weigh


def call(name, **arguments):
    import json

    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture
def environment():
    return ToolEnvironment(ToolBox([add, weigh, fail]))


def contents(step):
    return [message["content"] for message in step.observation]


def test_several_calls_are_answered_in_order(environment):
    assert environment.reset({"prompt": "?"}, 0) is None
    step = environment.step(call("add", a=1, b=2) + call("weigh", animal="cat") + call("add", a=5))
    assert step.observation == [
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "tool", "name": "weigh", "content": "4.0"},
        {"role": "tool", "name": "add", "content": "6"},
    ]
    assert (step.reward, step.done, step.info) == (None, False, {"calls": 3, "errors": 0, "invalid": False})


def test_the_python_form(environment):
    assert contents(environment.step('add(1, b=2)\nweigh("dog", 2)')) == ["3", "40.0"]


def test_a_turn_without_a_call_ends_the_episode_without_a_reward(environment):
    step = environment.step("The answer is 3.")
    assert (step.done, step.reward, step.observation) == (True, None, "")
    assert step.info == {"calls": 0, "errors": 0, "invalid": False}


@pytest.mark.parametrize(
    ("action", "content", "invalid"),
    [
        (call("ad", a=1), "error: no tool 'ad'; there are: add, weigh, fail", False),
        (call("add"), "error: add: argument 'a' is missing", False),
        (call("add", a="1"), "error: add: argument 'a' must be integer", False),
        (call("add", a=1, c=1), "error: add: no argument 'c'; it takes: a, b", False),
        (call("weigh", animal="cow"), "error: weigh: argument 'animal' must be one of cat, dog", False),
        ("add(1, 2, 3)", "error: add takes 2 arguments, not 3", False),
        ("add(1, a=2)", "error: add: argument 'a' is given twice", False),
        (call("fail", reason="no luck"), "error: RuntimeError: no luck second line", False),
        ("<tool_call>{</tool_call>", "error: no JSON: Expecting property name enclosed in double quotes", True),
    ],
)
def test_mistakes_are_observations(environment, action, content, invalid):
    step = environment.step(action)
    assert contents(step) == [content]
    assert step.info == {"calls": 1, "errors": 1, "invalid": invalid}
    assert not step.done


def test_one_mistake_does_not_spoil_the_other_calls(environment):
    step = environment.step(call("fail", reason="x") + call("add", a=1))
    assert contents(step) == ["error: RuntimeError: x second line", "2"]
    assert step.info["errors"] == 1


def test_a_long_message_is_cut(environment):
    (content,) = contents(environment.step(call("fail", reason="x" * 1000)))
    assert len(content) < MAX_MESSAGE + 40


async def later(a: int) -> int:
    """Add one, later.

    Args:
        a: A number.
    """
    return a + 1


def leave(code: int) -> None:
    """Leave.

    Args:
        code: The exit code.
    """
    raise SystemExit(code)


def train(steps: int) -> None:
    """Start a run.

    Args:
        steps: Its length.
    """
    raise NestedRun("no run here")


def test_coroutine_functions_are_awaited_and_exits_are_errors():
    environment = ToolEnvironment(ToolBox([later, leave]))
    assert contents(environment.step("later(2)\nleave(3)")) == ["3", "error: SystemExit: 3"]


def test_a_tool_that_starts_a_run_is_no_mistake_of_the_model():
    with pytest.raises(NestedRun):
        ToolEnvironment(ToolBox([train])).step("train(3)")


def test_names_must_differ_and_the_form_must_exist():
    with pytest.raises(ValueError, match="two tools are called 'add'; rename one"):
        ToolBox([add, add])
    with pytest.raises(ValueError, match="calls = 'xml': must be one of auto, json, python"):
        ToolBox([add], calls="xml")


def test_tools_beside_an_environment():
    environment = WithTools(Counter(), ToolBox([add]))
    assert environment.reset({}, 0) == "count to 3"
    assert contents(environment.step(call("add", a=1))) == ["2"]
    assert environment.step("3").reward == 1.0
    assert environment.oracle() == "1"
    assert [tool["function"]["name"] for tool in environment.tools()] == ["add"]
    environment.close()
