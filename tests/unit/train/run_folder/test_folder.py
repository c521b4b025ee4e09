"""The run folder: which folders a run may have, what it leaves behind, and what it never touches."""

import json
import os
import shutil
from pathlib import Path

import pytest

from heliostat.config import ConfigError, RunSection, build_recipe, dump_recipe
from heliostat.outputs import MARKER
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.run_folder.checkpoints import Checkpoints
from heliostat.train.run_folder.folder import RunFolder, default_run_dir, versions
from heliostat.train.run_folder.lock import RunLocked

RECIPE = build_recipe({}, ())


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_of_somebody_else_is_refused_and_keeps_every_file(tmp_path):
    for name in ("metrics.jsonl", "summary.json", "model/config.json", "checkpoints/step_000500/w.bin"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"mine": 1}')
    before = names(tmp_path)
    with pytest.raises(ConfigError, match="no run of Heliostat made it"):
        RunFolder.open(tmp_path / "mine", RECIPE)
    assert names(tmp_path) == before
    assert (tmp_path / "mine" / "summary.json").read_text() == '{"mine": 1}'


def test_a_recipe_alone_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / "recipe.toml").write_text(dump_recipe(RECIPE))
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"it holds 'metrics.jsonl' and 1 more"):
        RunFolder.open(tmp_path, RECIPE)


def test_a_run_of_an_earlier_version_is_continued_and_marked(tmp_path):
    (tmp_path / "recipe.toml").write_text(dump_recipe(RECIPE))
    (tmp_path / "versions.json").write_text(json.dumps(versions()))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    RunFolder.open(tmp_path, RECIPE).close()
    assert (tmp_path / MARKER).is_file()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    folder = RunFolder.open(tmp_path / "new", RECIPE)
    (tmp_path / "new" / "tensorboard").mkdir()
    (tmp_path / "new" / "tensorboard" / "events.out.tfevents.1").write_text("")
    folder.close()
    assert not (tmp_path / "new").exists()


def test_what_somebody_puts_into_a_run_that_never_began_stays(tmp_path):
    folder = RunFolder.open(tmp_path / "run", RECIPE)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    folder.close()
    assert names(tmp_path / "run") == [MARKER, "notes.txt"]


def test_half_written_files_of_ours_go_and_those_of_others_stay(tmp_path):
    RunFolder.open(tmp_path, RECIPE).lock.close()
    for name in ("summary.json.partial", "trackers.json.partial", "download.partial", "model.safetensors.partial"):
        (tmp_path / name).write_text("x")
    RunFolder.open(tmp_path, RECIPE).close()
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == ["download.partial", "model.safetensors.partial"]


@pytest.mark.parametrize("name", ["checkpoints", "model", "adapter", "reference"])
@pytest.mark.parametrize("what", ["link", "file", "foreign files"])
def test_what_would_be_in_the_way_at_the_end_is_refused_at_the_beginning(tmp_path, name, what):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    RunFolder.open(run, RECIPE).lock.close()
    (run / "checkpoints").rmdir()
    place = run / name
    if what == "link":
        place.symlink_to(elsewhere)
    elif what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    before = names(tmp_path)
    if (name, what) == ("checkpoints", "foreign files"):  # they are not in the way
        RunFolder.open(run, RECIPE).close()
    else:
        with pytest.raises(ConfigError, match=f"{name} (is a link|is not a folder|holds no model)"):
            RunFolder.open(run, RECIPE)
    assert names(tmp_path) == before


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "diary").write_text("mine")
    RunFolder.open(tmp_path / "run", RECIPE).lock.close()
    (tmp_path / "run" / "run.lock").unlink()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "diary")
    with pytest.raises(ConfigError, match=r"run.lock is a link"):
        RunFolder.open(tmp_path / "run", RECIPE)
    assert (tmp_path / "diary").read_text() == "mine"


def test_a_copy_by_hard_links_does_not_write_into_the_original(tmp_path):
    first = RunFolder.open(tmp_path / "run", RECIPE)
    first.append(first.metrics, [{"step": 1}])
    first.lock.close()
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
    (tmp_path / "copy" / "run.lock").unlink()
    copy = RunFolder.open(tmp_path / "copy", RECIPE)
    copy.append(copy.metrics, [{"step": 2}])
    copy.close()
    assert first.metrics.read_text() == '{"step": 1}\n'
    assert copy.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_folders_beside_the_checkpoints_are_not_taken_for_ours(tmp_path):
    foreign = ("best", "old.partial", "step_last", "step_500", "step_last.partial")
    for name in (*foreign, "step_000002", "step_000004.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_text("x")
    checkpoints = Checkpoints(tmp_path, 1, start_runtime(RECIPE.run))
    assert checkpoints.steps() == [2]
    checkpoints.drop_after(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)


def test_a_dated_name_is_one_that_is_not_taken(tmp_path):
    section = RunSection(root=str(tmp_path))
    first = default_run_dir(section, "demo")
    for _ in range(3):
        first.mkdir(parents=True)
        second = default_run_dir(section, "demo")
        assert second != first
        first = second


def test_the_day_of_a_chat_template_is_that_of_the_first_session(tmp_path):
    folder = RunFolder.open(tmp_path / "run", RECIPE)
    assert folder.keep_day("2026-03-01") == folder.keep_day("2026-03-02")
    assert folder.keep_day("2026-03-02").startswith("2026-03-01")
    (tmp_path / "run" / "template_day.txt").write_text("yesterday\n")
    with pytest.raises(
        ConfigError, match=r"template_day.txt is damaged: it holds the date that the chat template shows"
    ):
        folder.keep_day("2026-03-02")
    folder.close()


def test_other_processes_of_a_run_name_its_files_and_touch_none(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        assert not folder.writes
        folder.append(folder.metrics, [{"step": 1}])
        folder.write_summary({"status": "finished"})
        folder.write_audit("{}")
        assert folder.rewind_to(None, {}) == []
    assert names(tmp_path) == []


def test_a_folder_that_was_refused_is_free_at_once(tmp_path):
    with RunFolder.open(tmp_path, RECIPE):
        with pytest.raises(RunLocked):
            RunFolder.open(tmp_path, RECIPE)
        (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ConfigError, match="model is not a folder") as refusal:
        RunFolder.open(tmp_path, RECIPE)
    (tmp_path / "model").unlink()
    with RunFolder.open(tmp_path, RECIPE):
        assert "model" in str(refusal.value)  # held until here, and its traceback with it
