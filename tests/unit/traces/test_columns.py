"""Rows come back as traces, and a row with a wrong value is refused with the column's name."""

import json
import math

import pytest

from heliostat.traces.columns import from_columns, to_columns
from heliostat.traces.dialects import is_own, read_text_row
from tests.support.traces import make_trace, same


def test_a_row_comes_back_through_json():
    trace = make_trace(3, prefix_ids=(5,), cut="band:0")
    row = json.loads(json.dumps(to_columns(trace)))
    assert is_own(row)
    assert same(from_columns(row), trace)


def test_columns_that_are_missing_take_their_defaults():
    row = {"problem_id": "sums/1", "prompt_ids": [1], "completion_ids": [2], "reward": 1.0, "tokenizer": "t"}
    trace = from_columns(row)
    assert (trace.task, trace.success, trace.source.verifier) == ("sums", True, "claimed")
    assert math.isnan(trace.source.temperature)
    assert len(trace.logp_gen) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completion_ids", [1, -2]),
        ("completion_ids", [1.5]),
        ("completion_ids", "abc"),
        ("prompt_ids", [True]),
        ("prompt_ids", [2**32]),
        ("reward", float("nan")),
        ("reward", "1.0"),
        ("reward", True),
        ("success", 1),
        ("policy_step", -1),
        ("seed", 2.0),
        ("problem_id", 7),
        ("logp_gen", ["a"]),
        ("stop_reason", "tired"),
        ("flops", float("inf")),
        ("temperature", "warm"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"'{name}'"):
        from_columns(to_columns(make_trace(3)) | {name: value})


@pytest.mark.parametrize("name", ["problem_id", "prompt_ids", "completion_ids", "reward", "tokenizer"])
def test_a_needed_column_is_asked_for(name):
    row = to_columns(make_trace(3))
    del row[name]
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        from_columns(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logp_gen": [-1.0]}, "one per completion token"),
        ({"completion_ids": []}, "at least one"),
        ({"flops": -1.0}, "flops"),
        ({"logp_gen": [float("nan")] * 4}, "not finite"),
    ],
)
def test_values_must_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        from_columns(to_columns(make_trace(3)) | changes)


def test_rows_of_other_programs():
    verl = read_text_row({"input": "1 + 2 =", "output": "3", "gts": "3", "score": 1.0, "step": 5})
    assert (verl.question, verl.completion, verl.reward, verl.step) == ("1 + 2 =", "3", 1.0, 5)
    chat = [{"role": "user", "content": "1 + 2 ="}]
    trl = {"step": 2, "prompt": chat, "completion": [{"role": "assistant", "content": "3"}], "advantage": 0.1}
    assert read_text_row(trl).question == "1 + 2 ="
    assert read_text_row(trl).completion == "3"
    assert read_text_row(trl).reward is None
    talk = {"messages": [*chat, {"role": "assistant", "content": "3"}]}
    assert (read_text_row(talk).question, read_text_row(talk).completion) == ("1 + 2 =", "3")
    shared = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert (read_text_row(shared).question, read_text_row(shared).completion) == ("q", "a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": 1}, "no columns of a known kind"),
        ({"prompt": "q", "completion": 3}, "'completion' must be a text"),
        ({"prompt": "q", "completion": "a", "reward": float("nan")}, "'reward' must be a finite number"),
        ({"prompt": "q", "completion": "a", "step": -1}, "'step'"),
        ({"messages": [{"role": "user", "content": "q"}]}, "'messages'"),
    ],
)
def test_a_text_row_with_a_wrong_value_is_refused_by_name(row, message):
    with pytest.raises(ValueError, match=message):
        read_text_row(row)
