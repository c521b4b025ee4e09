"""Real runs killed at chosen events, and real files of theirs broken: the short form of ``make torture``."""

import json
import random
import shutil

import pytest

from heliostat.config import ConfigError
from heliostat.report.runs.read import read_run
from heliostat.train import run_recipe
from heliostat.train.run_folder.folder import RunFolder, reserve_run_dir
from tests.support import small
from tests.torture import courses as torture
from tests.torture import flips
from tests.torture.__main__ import files, others


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return torture.Course(tmp_path_factory.mktemp("courses") / "plain", train__keep_checkpoints=1)


@pytest.mark.slow
def test_killed_at_chosen_events_it_ends_with_the_same_bits(plain):
    assert torture.kills(plain, 5, random.Random(0)) == (5, 5)


@pytest.mark.slow
def test_killed_while_rolling_back_it_ends_with_the_same_bits(tmp_path):
    course = torture.Course(tmp_path / "back", rolled_back=True)
    assert course.num_events > 50
    assert torture.kills(course, 5, random.Random(1)) == (5, 5)


def test_what_comes_from_outside_is_survived(tmp_path):
    chance = random.Random(0)
    rows = [*files(tmp_path, 5, chance), *others(tmp_path, 5, chance)]
    assert [row for row in rows if row[1] != row[2]] == []
    assert len(rows) == 8


@pytest.mark.slow
def test_no_flip_goes_unseen_in_a_file_of_a_run(plain):
    chance = random.Random(0)
    found = {}
    for breaking in (flips.checkpoint_flips, flips.log_flips, flips.ended_flips):
        found |= breaking(plain.whole, 3, chance)
    assert {name for name, (num, total) in found.items() if num != total} == set()
    named = {path.relative_to(plain.whole).parts[0] for path in plain.whole.rglob("*") if path.is_file()}
    told = " ".join(found)
    assert {name for name in named if name not in told} == named & {"run.lock", "report.html"}


def unfinished(plain, folder):
    """The run as it was before it wrote its summary."""
    shutil.copytree(plain.whole, folder)
    (folder / "summary.json").unlink()
    return folder


def notes(recipe, folder, capsys):
    result = run_recipe(recipe, folder, "torture")
    return result, capsys.readouterr().out


def test_before_is_that_of_its_weights_although_its_rows_are_lost(plain, tmp_path, capsys):
    folder = unfinished(plain, tmp_path / "run")
    expected = json.loads((plain.whole / "summary.json").read_text())["before"]
    rows = (folder / "evals.jsonl").read_text().split("\n")
    (folder / "evals.jsonl").write_text("\n".join(rows[1:]))
    result, said = notes(plain.recipe, folder, capsys)
    assert "evals.jsonl is not what was written" in said.replace("\n", " ")
    assert result.before.summary() == expected
    assert torture.content(folder)["evals.jsonl"].count(b'"before"') == 6


@pytest.mark.parametrize("summary", ['{"status": "fin', "[]", "3", '{"status": 3}', "\xff"])
def test_a_damaged_summary_is_written_again(plain, tmp_path, summary):
    folder = unfinished(plain, tmp_path / "run")
    (folder / "summary.json").write_text(summary, encoding="latin-1")
    assert run_recipe(plain.recipe, folder, "torture").status == "finished"
    assert torture.content(folder) == plain.ended


def test_what_changes_after_the_end_is_said(plain, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(plain.whole, folder)
    assert "not what was written" not in notes(plain.recipe, folder, capsys)[1]
    rows = folder / "evals.jsonl"
    rows.write_text(rows.read_text().replace('"num_success": 0', '"num_success": 1', 1))
    assert "evals.jsonl is not what was written" in notes(plain.recipe, folder, capsys)[1].replace("\n", " ")
    assert any("evals.jsonl is not what was written" in note for note in read_run(folder).notes)
    (folder / "manifest.json").unlink()  # as if killed right after the summary
    run_recipe(plain.recipe, folder, "torture")
    assert (folder / "manifest.json").exists()


def test_rows_of_another_shape_cost_themselves_alone(plain, tmp_path):
    folder = unfinished(plain, tmp_path / "run")
    for name in ("metrics.jsonl", "evals.jsonl", "transcripts.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'[1]\n{"step": "x"}\n{"phase": 3}\nnull\n\xe7\xad\n')
    assert run_recipe(plain.recipe, folder, "torture").status == "finished"
    assert torture.content(folder) == plain.ended
    finished = unfinished(plain, tmp_path / "finished")
    (finished / "summary.json").write_text('{"status": "finished"}')
    (finished / "evals.jsonl").write_text('{"phase": "before", "num_success": "many"}\n')
    assert run_recipe(plain.recipe, finished, "torture").before is None


def test_a_link_in_place_of_the_checkpoints_is_refused(plain, tmp_path):
    folder = unfinished(plain, tmp_path / "run")
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="checkpoints is a link"):
        run_recipe(plain.recipe, folder, "torture")


def test_what_killed_exports_left_is_removed_and_versions_are_written(tmp_path):
    recipe = small.recipe(tmp_path)
    folder = tmp_path / "run"
    RunFolder.open(folder, recipe).close()
    assert not folder.exists()  # a run that never began leaves nothing
    first = RunFolder.open(folder, recipe)
    first.metrics.touch()
    first.close()
    for name in (".model-a1b2c3d4", ".old-model-a1b2c3d4", "adapter.partial", "model.deleted", "reference.partial"):
        (folder / name).mkdir()
        (folder / name / "half").touch()
    (folder / "report.html.partial").touch()
    (folder / "versions.json").unlink()
    before = {path.name for path in folder.iterdir() if path.is_file()} - {"report.html.partial"}
    RunFolder.open(folder, recipe).close()
    assert {path.name for path in folder.iterdir()} == before | {"versions.json", "checkpoints"}


def test_runs_that_start_in_one_second_have_names_of_their_own(tmp_path):
    recipe = small.recipe(tmp_path, run__root=str(tmp_path / "runs"))
    names = [reserve_run_dir(recipe.run, "small") for _ in range(4)]
    assert len(set(names)) == 4


def test_a_reference_that_was_lost_is_not_replaced_by_trained_weights(tmp_path):
    recipe = small.recipe(tmp_path, **{**torture.SETTINGS, "objective.name": "grpo", "objective.kl_ref": 0.1})
    assert run_recipe(recipe, tmp_path / "run", "small").status == "finished"
    (tmp_path / "run" / "summary.json").unlink()
    weights = tmp_path / "run" / "reference" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "failed"
    assert "reference policy is lost" in result.reason
