"""Reading run folders: whole ones, killed ones, damaged ones, and folders that are no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.report.runs.read import CONSEQUENCES, read_run, read_runs
from tests.unit.report.synthetic import Shape, make_run


def folder_with(path: Path, **files: str | bytes) -> Path:
    path.mkdir()
    for name, content in files.items():
        target = path / name.replace("_", ".")
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_whole_folder_is_read_without_a_note(finished: Path) -> None:
    run = read_run(finished)
    assert run.notes == ()
    assert (run.label, run.status, run.last_step) == ("demo", "finished", 200)
    assert run.setting("objective.tau") == 0.2
    assert run.setting("objective.nothing", "none") == "none"
    assert len(run.series("reward/mean")) == 200
    assert run.series("policy/lambda_hat")[56] == (57.0, None)
    assert {row.phase for row in run.evaluations} == {"before", "during", "after"}


def test_a_killed_run_loses_only_its_last_lines_and_says_so(killed: Path) -> None:
    run = read_run(killed)
    assert run.status == "unfinished"
    assert 0 < run.last_step < 200
    assert len(run.notes) == 4
    assert any(note.startswith("summary.json is absent") for note in run.notes)
    assert sum("one line was incomplete" in note for note in run.notes) == 3


@pytest.mark.parametrize("name", list(CONSEQUENCES))
def test_each_missing_file_is_named_with_what_it_costs(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", Shape(num_steps=5))
    (folder / name).unlink()
    (note,) = read_run(folder).notes
    assert name in note
    assert CONSEQUENCES[name] in note


@pytest.mark.parametrize("name", ["recipe.toml", "versions.json", "summary.json"])
@pytest.mark.parametrize("content", [b"{half", b"\xff\xfe\x00", b"[1, 2]", b'"text"'])
def test_damaged_documents_are_left_out_with_a_note(tmp_path: Path, name: str, content: bytes) -> None:
    if (name, content) == ("recipe.toml", b"[1, 2]"):
        content = b"[1, 2"
    folder = make_run(tmp_path / "run", Shape(num_steps=5))
    (folder / name).write_bytes(content)
    (note,) = read_run(folder).notes
    assert f"{name} is damaged" in note


def test_lines_that_are_no_records_are_counted_and_skipped(tmp_path: Path) -> None:
    good = {"step": 1, "phase": "before", "task": "t", "problem_id": "p", "num_samples": 4, "num_success": 2}
    bad = [
        good | {"num_success": 5},
        good | {"num_samples": 0},
        good | {"phase": "never"},
        good | {"step": "one"},
        {"step": 1},
    ]
    lines = [json.dumps(row) for row in (good, *bad)] + ["[]", "7", "{", "null", ""]
    folder = folder_with(tmp_path / "run", evals_jsonl="\n".join(lines))
    run = read_run(folder)
    assert len(run.evaluations) == 1
    assert any("evals.jsonl: 9 lines were incomplete" in note for note in run.notes)


def test_a_line_cut_inside_a_character_is_a_broken_line(tmp_path: Path) -> None:
    text = '{"step": 1, "reward/mean": 0.5}\n{"step": 2, "note": "λ"}'.encode()
    run = read_run(folder_with(tmp_path / "run", metrics_jsonl=text[:-3]))
    assert run.last_step == 1
    assert any("one line was incomplete" in note for note in run.notes)


def test_numbers_that_cannot_be_drawn_become_gaps(tmp_path: Path) -> None:
    lines = '{"step": 1, "x": NaN}\n{"step": 2, "x": 1e308}\n{"step": 3, "x": true}\n{"step": 4, "x": "2"}\n'
    run = read_run(folder_with(tmp_path / "run", metrics_jsonl=lines + '{"step": 5, "x": 2}'))
    assert run.series("x") == [(1.0, None), (2.0, None), (3.0, None), (5.0, 2.0)]


def test_a_step_logged_twice_keeps_the_later_value_and_steps_are_sorted(tmp_path: Path) -> None:
    lines = ['{"step": 2, "x": 1, "y": 5}', '{"step": 1, "x": 0}', '{"step": 2, "x": 3}', '{"step": 1.5, "x": 9}']
    run = read_run(folder_with(tmp_path / "run", metrics_jsonl="\n".join(lines)))
    assert run.series("x") == [(1.0, 0.0), (2.0, 3.0)]
    assert run.series("y") == [(2.0, 5.0)]


def test_lone_surrogates_in_model_text_are_replaced(tmp_path: Path) -> None:
    row = {"step": 1, "phase": "after", "task": "t", "problem_id": "p", "prompt": "q", "completion": "a\ud800b"}
    run = read_run(folder_with(tmp_path / "run", transcripts_jsonl=json.dumps(row)))
    assert run.transcripts[0].completion == "a?b"


def test_folders_that_are_no_run_are_refused_in_one_sentence(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is not a run folder: it holds none of recipe\.toml"):
        read_run(tmp_path / "empty")
    with pytest.raises(ValueError, match="it contains run folders: demo"):
        read_run(finished.parent)
    with pytest.raises(ValueError, match="at least one run folder"):
        read_runs([])


def test_runs_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / parent / "demo", Shape(num_steps=5)) for parent in ("a", "b")]
    assert [run.label for run in read_runs(paths)] == ["a/demo", "b/demo"]
    assert [run.label for run in read_runs([paths[0]] * 3)] == ["a/demo", "a/demo (2)", "a/demo (3)"]
    assert [run.label for run in read_runs(paths[:1])] == ["demo"]
