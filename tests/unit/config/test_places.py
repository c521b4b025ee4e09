"""A recipe's files are found beside it from every working directory, and a run goes on from another one."""

from pathlib import Path

import pytest

from heliostat.config import build_recipe, is_same_place, load_recipe
from heliostat.tasks import VerifierPool, load_task

RECIPE = """
[model]
path = "base"
[traces]
bank = "new.bank"
[task]
name = "file"
path = "rows.jsonl"
heldout_path = "held/out.jsonl"
answer_column = "answer"
verifiers = [{ name = "beside_rewards:right" }]
num_train = 2
num_heldout = 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    for name in ("project/base", "project/held", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (folder / "r.toml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "{i}?", "answer": "{i}"}}\n' for i in range(3)))
    (folder / "held" / "out.jsonl").write_text('{"prompt": "9?", "answer": "9"}\n')
    (folder / "beside_rewards.py").write_text(
        "def right(completions, answer, **columns):\n    return [float(answer[0] == completions[0])]\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_files_and_reward_modules_stand_beside_the_recipe(project: Path) -> None:
    recipe = load_recipe("../project/r.toml")
    settings = recipe.task[0].settings
    assert recipe.model.path == str(project / "base")
    assert recipe.traces.bank == str(project / "new.bank")
    assert (settings["path"], settings["heldout_path"]) == (
        str(project / "rows.jsonl"),
        str(project / "held" / "out.jsonl"),
    )
    task = load_task(recipe.task[0], 0)
    with VerifierPool([task]) as pool:  # in another process
        verdicts = pool.judge(task.heldout[0], ["9", "8"]).result(timeout=120)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_a_run_folders_recipe_means_the_same_files_from_anywhere(project: Path, monkeypatch) -> None:
    from heliostat.config import dump_recipe

    recipe = load_recipe(str(project / "r.toml"))
    (project / "run").mkdir()
    (project / "run" / "recipe.toml").write_text(dump_recipe(recipe))
    for place in (project, project / "run", Path("/")):
        monkeypatch.chdir(place)
        assert load_recipe(str(project / "run" / "recipe.toml")) == recipe


def test_a_recipe_that_is_extended_finds_its_own_files(project: Path) -> None:
    (project.parent / "elsewhere" / "e.toml").write_text('extends = "../project/r.toml"\n[train]\nnum_steps = 3\n')
    assert load_recipe("e.toml").task[0].settings["path"] == str(project / "rows.jsonl")


def test_what_is_not_there_and_what_is_no_path_stays_as_it_is(project: Path) -> None:
    (project / "tiny.toml").write_text('[model]\npath = "tiny"\n[task]\nname = "file"\npath = "someone/rows"\n')
    recipe = load_recipe(str(project / "tiny.toml"))
    assert (recipe.model.path, recipe.task[0].settings["path"]) == ("tiny", "someone/rows")
    assert "import_from" not in recipe.task[0].settings
    over = load_recipe(str(project / "r.toml"), {"task.path": "mine.jsonl"})
    assert over.task[0].settings["path"] == "mine.jsonl"  # typed in the shell: of the working directory
    assert build_recipe({"task.name": "file", "task.path": "rows.jsonl"}).task[0].settings["path"] == "rows.jsonl"


def test_another_module_of_the_name_is_not_taken_for_it(project: Path, monkeypatch) -> None:
    other = project.parent / "elsewhere" / "taken_rewards.py"
    for file in (other, project / "taken_rewards.py"):
        file.write_text("def right(completions, **columns):\n    return [0.0]\n")
    monkeypatch.syspath_prepend(str(other.parent))
    import taken_rewards  # noqa: F401

    (project / "r.toml").write_text(RECIPE.replace("beside_rewards", "taken_rewards"))
    with pytest.raises(ValueError, match=r"'taken_rewards' means .*project/taken_rewards.py, but .*elsewhere"):
        load_task(load_recipe(str(project / "r.toml")).task[0], 0)


def test_a_relative_path_of_an_earlier_run_is_the_same_place() -> None:
    assert is_same_place("data/rows.jsonl", "/project/data/rows.jsonl")
    assert not is_same_place("rows.jsonl", "/project/other.jsonl")
    assert not is_same_place("/a/rows.jsonl", "/b/rows.jsonl")
    assert not is_same_place("", "/b")
    assert not is_same_place(3, "/b/3")


def test_environments_and_tools_are_imported_from_the_recipes_folder(project: Path) -> None:
    def imported_from(table: str) -> str:
        (project / "e.toml").write_text(f"[environment]\n{table}\n")
        return load_recipe(str(project / "e.toml")).environment.import_from

    assert imported_from('name = "beside_rewards:right"') == str(project)
    assert imported_from('tools = ["beside_rewards:right"]') == str(project)
    assert imported_from('name = "json:loads"') == ""
    assert imported_from('name = "lookup"') == ""
    assert imported_from('name = "beside_rewards:right"\nimport_from = "held"') == str(project / "held")
