"""The list of keys, the nearest key to a misspelt one, and checking the settings of a named thing."""

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config import ConfigError, Recipe, build_checked, describe_keys, describe_sections, suggest

KEYS = [key.name for key in describe_keys()]


def test_keys_and_defaults_are_those_of_an_empty_recipe():
    dump = Recipe().model_dump()
    dump["task"] = dump["task"][0]
    expected = {f"{section}.{key}": value for section, table in dump.items() for key, value in table.items()}
    assert {key.name: key.default for key in describe_keys()} == expected


def test_every_key_and_section_explains_itself():
    assert [key.name for key in describe_keys() if not key.description] == []
    assert [name for name, summary in describe_sections().items() if not summary] == []
    assert list(describe_sections()) == list(Recipe.model_fields)


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("optimizer.lr", "float > 0"),
        ("rollout.top_p", "float > 0 and <= 1"),
        ("rollout.group_size", "int >= 1"),
        ("model.chat", "true|false|auto"),
        ("model.settings", "table"),
        ("rollout.stop", "list"),
        ("run.name", "text"),
    ],
)
def test_types_are_written_for_people(name, type_):
    assert {key.name: key.type for key in describe_keys()}[name] == type_


@given(st.sampled_from([key for key in KEYS if len(key.partition(".")[2]) > 5]), st.data())
def test_a_key_with_one_letter_missing_is_recognised(key, data):
    section, _, name = key.partition(".")
    position = data.draw(st.integers(0, len(name) - 1))
    typo = f"{section}.{name[:position]}{name[position + 1 :]}"
    if typo not in KEYS:
        assert suggest(typo) == f" (did you mean '{key}'?)"


@pytest.mark.parametrize(
    ("word", "key"),
    [("lr", "optimizer.lr"), ("temprature", "rollout.temperature"), ("model.temperature", "rollout.temperature")],
)
def test_bare_and_misplaced_keys_find_their_section(word, key):
    assert suggest(word) == f" (did you mean '{key}'?)"


def test_nonsense_gets_no_suggestion():
    assert suggest("qqqq.xxxx") == ""


@dataclass(frozen=True)
class Tilt:
    """Settings of some named thing."""

    tau: float = 0.5
    kind: Literal["mean", "part"] = "mean"
    pair: tuple[float, float] = (0.9, 0.99)
    limit: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau must be positive, not {self.tau}")


def test_named_settings_build_the_thing():
    assert build_checked(Tilt, {"tau": 1, "pair": [0.1, 0.2]}, "objective") == Tilt(tau=1.0, pair=(0.1, 0.2))
    assert build_checked(Tilt, {}, "objective") == Tilt()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"tao": 1},
            "unknown key objective.tao (did you mean 'objective.tau'?); objective takes: tau, kind, pair, limit",
        ),
        ({"tau": "small"}, 'objective.tau = "small": must be a number'),
        ({"tau": -1}, "objective: tau must be positive, not -1.0"),
        ({"kind": "men"}, "objective.kind = \"men\": must be 'mean' or 'part' (did you mean 'mean'?)"),
        ({"pair": 3}, "objective.pair = 3: must be a list"),
        ({"limit": "all"}, "objective.limit = \"all\": must be a whole number or 'auto'"),
    ],
)
def test_wrong_named_settings_get_one_plain_line(settings, line):
    with pytest.raises(ConfigError) as caught:
        build_checked(Tilt, settings, "objective")
    assert str(caught.value) == line


def test_a_misspelt_shared_key_is_recognised_among_the_things_own():
    with pytest.raises(ConfigError, match=r"unknown key optimizer.warmup_step \(did you mean 'optimizer.warmup_steps'"):
        build_checked(Tilt, {"warmup_step": 1}, "optimizer")


def test_long_values_are_cut_in_messages():
    with pytest.raises(ConfigError) as caught:
        build_checked(Tilt, {"tau": "x" * 1000}, "objective")
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)
