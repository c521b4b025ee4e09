"""Files and modules that a recipe names, found from its folder."""

from pathlib import Path

import pytest

from heliostat.config import load_recipe

RECIPE = """
[task]
name = "file"
path = "rows/problems.jsonl"
heldout_path = "nowhere.jsonl"
verifiers = [{ name = "numeric" }, { name = "my_rewards:f" }]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "problems.jsonl").touch()
    (folder / "my_rewards.py").write_text("def f(completions, **columns): return [1.0]\n")
    (folder / "mine.toml").write_text(RECIPE)
    return folder


def test_from_elsewhere_they_are_whole_paths(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("project/mine.toml", str(project / "mine.toml")):
        settings = load_recipe(name).task[0].settings
        assert settings["path"] == str(project / "rows" / "problems.jsonl")
        assert settings["heldout_path"] == "nowhere.jsonl"
        assert settings["modules"] == str(project)


def test_from_the_folder_itself_nothing_changes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    settings = load_recipe("mine.toml").task[0].settings
    assert settings["path"] == "rows/problems.jsonl"
    assert "modules" not in settings


def test_each_recipe_of_a_chain_has_its_own_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "problems.jsonl").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "longer.toml").write_text('extends = "../project/mine.toml"\n[train]\nnum_steps = 7\n')
    recipe = load_recipe("elsewhere/longer.toml")
    assert recipe.train.num_steps == 7
    assert recipe.task[0].settings["path"] == str(project / "rows" / "problems.jsonl")


def test_several_tasks_and_what_was_said_stays(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    second = RECIPE.replace("[task]", "[[task]]").replace('path = "rows', f'modules = "{tmp_path}"\npath = "rows', 1)
    (project / "two.toml").write_text(RECIPE.replace("[task]", "[[task]]") + second)
    first, other = load_recipe("project/two.toml").task
    assert first.settings["modules"] == str(project)
    assert other.settings["modules"] == str(tmp_path)
    assert other.settings["path"] == first.settings["path"]
