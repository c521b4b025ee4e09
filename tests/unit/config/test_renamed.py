"""Old names of settings: accepted with one line, never beside the new one, and no longer than promised."""

import pytest

import heliostat
from heliostat.config import ConfigError, build_recipe, dump_recipe, load_recipe
from heliostat.config.keys import field_of
from heliostat.config.renamed import RENAMED, Renamed, notify, with_new_names


@pytest.fixture(autouse=True)
def _notices_not_yet_printed():
    notify.cache_clear()


def test_an_old_name_on_the_command_line_sets_the_new_one_and_says_so_once(capsys):
    for _ in range(2):
        assert load_recipe("demo", ["--train.recompute", "true"]).train.gradient_checkpointing
    assert capsys.readouterr().err == (
        "heliostat: train.recompute is now train.gradient_checkpointing; version 0.2 will refuse the old name\n"
    )


def test_the_recipe_of_a_run_begun_under_the_old_name_is_read_as_it_was(tmp_path):
    recipe = build_recipe({"train.gradient_checkpointing": True})
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe).replace("gradient_checkpointing", "recompute"))
    assert "recompute" in path.read_text()
    assert load_recipe(str(path)) == recipe


def test_an_override_by_the_new_name_wins_over_a_file_with_the_old_one(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[train]\nrecompute = true\n")
    assert not load_recipe(str(path), {"train.gradient_checkpointing": False}).train.gradient_checkpointing


def test_both_names_in_one_place_are_refused():
    with pytest.raises(
        ConfigError, match=r"^train.recompute is the old name of train.gradient_checkpointing, and both"
    ):
        build_recipe({"train": {"recompute": True, "gradient_checkpointing": True}})


def test_a_layer_without_old_names_says_nothing(capsys):
    layer = {"train": {"num_steps": 1}, "task": {0: {"name": "file"}}}
    assert with_new_names(layer) == layer
    assert capsys.readouterr().err == ""


def test_other_settings_of_the_section_keep_their_values():
    renamed = {"a.old": Renamed("a.new", "9.0")}
    assert with_new_names({"a": {"x": 1, "old": 2}, "b": {"old": 3}}, renamed) == {
        "a": {"x": 1, "new": 2},
        "b": {"old": 3},
    }


@pytest.mark.parametrize("old", RENAMED)
def test_new_names_exist_old_ones_do_not_and_the_promised_version_is_ahead(old):
    new = RENAMED[old]
    assert field_of(new.name) is not None
    assert field_of(old) is None
    assert old.partition(".")[0] == new.name.partition(".")[0], "renamed within its section"
    version = tuple(int(part) for part in heliostat.__version__.split(".")[:2])
    assert version < tuple(map(int, new.removed_in.split("."))), f"{old} was to be removed in {new.removed_in}"
