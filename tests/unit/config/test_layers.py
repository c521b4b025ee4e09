"""Overrides taken out of a command line, and values read from their text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config import ConfigError, load_recipe, split_overrides
from heliostat.config.layers import layer_from, merge, parse_value


def test_settings_are_taken_out_wherever_they_stand():
    found, others = split_overrides(
        ["train", "--a.b", "1", "demo", "--c.d=x=y", "--run", "runs/x.y", "--task.1.name=z", "-n", "3", "--json=a.b"]
    )
    assert found == {"a.b": "1", "c.d": "x=y", "task.1.name": "z"}
    assert others == ["train", "demo", "--run", "runs/x.y", "-n", "3", "--json=a.b"]


def test_the_last_value_of_a_key_wins():
    assert split_overrides(["--a.b", "1", "--a.b=2"])[0] == {"a.b": "2"}
    assert load_recipe("demo", ["--train.num_steps=1", "--train.num_steps=2"]).train.num_steps == 2


@pytest.mark.parametrize("arguments", [["--a.b"], ["--a.b", "--c.d", "1"]])
def test_a_setting_without_value_is_refused(arguments):
    with pytest.raises(ConfigError, match=r"^--a.b needs a value: --a.b VALUE$"):
        split_overrides(arguments)


def test_negative_numbers_and_dashes_are_values():
    assert split_overrides(["--a.b", "-1", "--c.d", "-x", "--e.f=--g"])[0] == {"a.b": "-1", "c.d": "-x", "e.f": "--g"}


@pytest.mark.slow
@given(st.dictionaries(st.from_regex(r"[a-z]\w{0,5}\.[a-z]\w{0,5}", fullmatch=True), st.text(max_size=10), max_size=4),
       st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3))  # fmt: skip
def test_splitting_loses_nothing(pairs, words):
    assert split_overrides([f"--{key}={value}" for key, value in pairs.items()] + words) == (pairs, words)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-.5e-3", -0.5e-3),
        ("2.", 2.0),
        ("true", True),
        ("True", "True"),
        ("file", "file"),
        ('"3"', "3"),
        ("'a b'", "a b"),
        ("[1, 2]", [1, 2]),
        ('["a", "\\n"]', ["a", "\n"]),
        ("{a = 1, b.c = 'x'}", {"a": 1, "b": {"c": "x"}}),
        ("2026-11-21", "2026-11-21"),  # a recipe holds no dates
        ("12:00:00", "12:00:00"),
        ("1\nother = 2", "1\nother = 2"),  # one value, never a second key
        ("1\n[run]\nseed = 3", "1\n[run]\nseed = 3"),
        ("", ""),
        ("[1,", "[1,"),
    ],
)
def test_values_are_toml_or_bare_text(text, value):
    parsed = parse_value(text, "objective.anything")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("text", "value"), [("3", "3"), ("true", "true"), ("[x]", "[x]"), ('"3"', "3"), ("", "")])
def test_keys_that_hold_text_take_it_unquoted(text, value):
    for key in ("run.name", "task.name", "task.1.name"):
        assert parse_value(text, key) == value


def test_merging_changes_neither_layer():
    base = layer_from({"rollout.group_size": 4, "objective": {"name": "grpo", "eps": 1}, "task": [{"name": "file"}]})
    over = layer_from({"rollout.stop": ["x"], "objective.name": "rloo", "task.num_train": 3})
    copies = repr(base), repr(over)
    assert merge(base, over) == {
        "rollout": {"group_size": 4, "stop": ["x"]},
        "objective": {"name": "rloo"},
        "task": [{"name": "file", "num_train": 3}],
    }
    assert (repr(base), repr(over)) == copies


def test_merging_a_layer_with_itself_changes_nothing():
    layer = layer_from({"objective": {"name": "grpo", "eps": 1}, "model.settings": {"a": 1}, "task": [{"name": "x"}]})
    assert merge(layer, layer) == layer


def test_dotted_names_and_tables_mix():
    assert layer_from({"rollout": {"group_size": 2}, "rollout.stop": ["x"]}) == {
        "rollout": {"group_size": 2, "stop": ["x"]}
    }


def test_values_without_a_toml_form_are_refused():
    with pytest.raises(ConfigError, match=r"^objective.f is a function; a recipe holds numbers, "):
        layer_from({"objective.f": lambda: 0})
