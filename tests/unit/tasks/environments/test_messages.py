"""Replies of the right shape pass, and no others."""

import json
from typing import Any

import pytest

from heliostat.tasks.environments.contract import Step
from heliostat.tasks.environments.messages import (
    plain_step,
    read_nothing,
    read_observation,
    read_oracle,
    read_reply,
    read_schemas,
    read_step,
)

STEP = {"observation": "o", "reward": 1.0, "done": False, "info": {}}


def test_a_step_survives_the_journey() -> None:
    for step in (
        Step("text", 0.5, True, {"success": True, "calls": 3, "errors": 0, "invalid": False}),
        Step([{"role": "tool", "content": [1, {"a": None}]}], None, False, {"depth": 2}),
        Step(),
    ):
        assert read_step(json.loads(json.dumps(plain_step(step)))) == step


def test_further_facts_are_dropped_where_they_are_no_small_json() -> None:
    loop: list[Any] = []
    loop.append(loop)
    facts = {"ok": [1, "two"], "long": "x" * 2000, "nan": float("nan"), "set": {1}, "loop": loop, "success": None}
    assert plain_step(Step(info=facts))["info"] == {"ok": [1, "two"]}
    many = plain_step(Step(info={f"key{number}": number for number in range(1000)}))
    assert len(many["info"]) == 32


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        STEP | {"extra": 1},
        STEP | {"observation": None},
        STEP | {"observation": 3},
        STEP | {"observation": [{"role": "user"}]},
        STEP | {"observation": "x" * (2**20 + 1)},
        STEP | {"reward": "1"},
        STEP | {"reward": float("inf")},
        STEP | {"done": 1},
        STEP | {"info": []},
        STEP | {"info": {"success": 1}},
        STEP | {"info": {"calls": True}},
        STEP | {"info": {"calls": -1}},
        STEP | {"info": {"note": "x" * 2000}},
    ],
)
def test_steps_of_the_wrong_shape_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"step|observation|message|reward|info"):
        read_step(wrong)


def test_other_values_are_checked_too() -> None:
    assert read_observation("caf\u00e9 \ud800") == "caf\u00e9 ?"
    assert read_oracle(None) is None
    assert read_oracle("go") == "go"
    assert read_schemas([{"a": 1}]) == ({"a": 1},)
    for read, wrong in ((read_oracle, 3), (read_schemas, {"a": 1}), (read_schemas, [1]), (read_nothing, 0)):
        with pytest.raises(ValueError, match=r"action|tools|asked"):
            read(wrong)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"serial": 7}',
        b'{"serial": 6, "value": 1}',
        b'{"serial": 7, "value": 1, "error": "both"}',
        b'{"serial": 7, "error": 3}',
        b'{"serial": 7, "value": NaN}',
        b'{"serial": true, "value": 1}',
    ],
)
def test_replies_of_the_wrong_shape_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"reply|JSON|Expecting|decode"):
        read_reply(message, 7)
    assert read_reply(b'{"serial": 7, "value": [1]}', 7) == {"serial": 7, "value": [1]}
