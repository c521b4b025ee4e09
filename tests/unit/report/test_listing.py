"""Lists of runs: what each is doing, read beside runs that work and start, which never notice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from heliostat.cli import main
from heliostat.report.listing import list_runs, newest_run
from heliostat.report.runs.glance import glance
from heliostat.report.runs.writer import writer_of
from heliostat.storage import append_rows
from heliostat.train.run_folder.lock import take_lock
from tests.unit.report.synthetic import Shape, kill, make_run

HOLD = "import sys, pathlib; from heliostat.train.run_folder.lock import take_lock; \
lock = take_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def root(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every status but running. Read only."""
    root = tmp_path_factory.mktemp("all runs")
    shutil.copytree(finished, root / "done")
    kill(make_run(root / "killed", Shape(num_problems=20)))
    guarded = make_run(root / "guarded", Shape(status="failed", num_problems=20))
    append_rows(guarded / "events.jsonl", [{"step": 9, "action": "stop", "taken": True, "text": "stopped"}])
    make_run(root / "failed", Shape(status="failed", num_problems=20))
    broken = make_run(root / "broken", Shape(num_problems=20))
    (broken / "recipe.toml").write_text("[train\n")
    (root / "control").mkdir()
    (root / "control" / "heliostat-run.json").write_text('{"kind": "heliostat control"}')
    (root / "notes").mkdir()
    (root / "notes" / "recipe.toml").write_text("of somebody else")
    return root


def test_every_run_has_a_row_and_other_folders_have_none(root: Path) -> None:
    found = {one.folder.name: one.status for one in list_runs([root])}
    assert found == {
        "done": "done",
        "killed": "interrupted",
        "guarded": "ended by the guard",
        "failed": "failed",
        "broken": "broken",
        "control": "control",
    }
    assert [one.folder.name for one in list_runs([root / "done", root / "done"])] == ["done"]


def test_the_newest_run_is_the_one_whose_logs_changed_last(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "done", tmp_path / "first")
    shutil.copytree(root / "failed", tmp_path / "second")
    for name, at in (("first", 2_000_000_000), ("second", 1_000_000_000)):
        for path in (tmp_path / name).iterdir():
            os.utime(path, (at, at))
    assert newest_run(tmp_path) == tmp_path / "first"
    assert newest_run(tmp_path / "nowhere") is None


def test_the_table_and_the_json_say_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(root), "--json"]) == 0
    rows = {Path(row["folder"]).name: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert (rows["done"]["step"], rows["done"]["num_steps"]) == (200, 200)
    assert rows["killed"]["after"] is None
    assert rows["control"]["bytes"] == 512 * (root / "control" / "heliostat-run.json").stat().st_blocks
    assert main(["runs", str(root)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if str(root) in line}
    assert "200 of 200" in lines[str(root / "done").split()[0]]
    table = "\n".join(lines.values())
    assert f"{rows['done']['before']['pass@1']:.1%} -> {rows['done']['after']['pass@1']:.1%}" in table


def test_no_runs_are_a_sentence_and_no_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "there are no runs in runs/; heliostat train demo starts one\n"
    assert main(["runs", "elsewhere"]) == 2
    assert capsys.readouterr().err == "heliostat: elsewhere: no such file or directory\n"


@pytest.mark.slow
def test_a_process_that_holds_the_lock_is_seen_until_it_is_killed(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "killed", tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert writer_of(folder) == process.pid
    assert glance(folder).status == "running"
    process.kill()
    process.communicate()
    assert writer_of(folder) is None
    assert glance(folder).status == "interrupted"
    (folder / "run.lock").write_text(str(os.getpid()))  # the number went to another process
    assert writer_of(folder) is None


@pytest.mark.slow
def test_looking_never_refuses_a_run_that_starts(tmp_path: Path) -> None:
    """A process looks without a pause while this one takes and releases the lock, which raises if it is taken."""
    look = "import sys, pathlib; from heliostat.report.runs.writer import writer_of; print('looking', flush=True)\n\
while True: writer_of(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", look, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "looking\n"
    for _ in range(3000):
        take_lock(tmp_path).close()
    process.kill()
    process.communicate()


def test_time_left_is_that_of_the_last_steps(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "killed", tmp_path / "run"))
    assert glance(folder).seconds_left is None  # it does not run
    with take_lock(folder) as lock:
        seen = glance(folder)
        assert seen.seconds_left == pytest.approx((200 - seen.step) * 1.3)
        (folder / "metrics.jsonl").write_text('{"step": -30}\n')
        assert glance(folder).progress == "warm start 90 of 120"
        (folder / "metrics.jsonl").unlink()
        assert glance(folder).status == "starting"
        lock.truncate(0)
