"""What may be written over: folders that a run of ours marked, files that we wrote, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from heliostat.config import ConfigError
from heliostat.outputs import MARKER, check_replaceable, claim_folder, release_folder

KIND = "heliostat train"


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def test_a_folder_that_is_not_there_or_empty_is_claimed_and_known_again(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, made in (("new", True), ("deep/er", True), ("empty", False)):
        folder = tmp_path / name
        assert claim_folder(folder, KIND) is made
        (folder / "metrics.jsonl").write_text("{}\n")
        assert claim_folder(folder, KIND) is False


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", ".hidden", "model/config.json", "checkpoints/best/w.bin", "run.lock"]
)
def test_a_folder_with_anything_in_it_is_refused_and_left_as_it_was(tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("a week's work\n")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"is not empty, and no run of Heliostat made it \(it holds '{name[:4]}"):
        claim_folder(tmp_path / "mine", KIND)
    assert contents(tmp_path) == before


def test_a_symlink_is_what_it_points_to(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    with pytest.raises(ConfigError, match=r"notes.txt"):
        claim_folder(tmp_path / "link", KIND)
    (tmp_path / "full" / "notes.txt").unlink()
    claim_folder(tmp_path / "link", KIND)
    assert (tmp_path / "full" / MARKER).is_file()


def test_a_file_a_path_through_a_file_and_a_dangling_link_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "dangling"):
        with pytest.raises(ConfigError, match="cannot be a run folder"):
            claim_folder(path, KIND)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("path", ["a" * 300, "/proc/run", "/dev/null/run"])
def test_a_place_where_no_folder_can_be_made_is_refused_in_a_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        claim_folder(Path(path), KIND)


def test_a_run_of_another_kind_and_a_damaged_marker_are_refused(tmp_path):
    claim_folder(tmp_path / "race", "heliostat control")
    with pytest.raises(ConfigError, match="belongs to heliostat control, not to heliostat train"):
        claim_folder(tmp_path / "race", KIND)
    (tmp_path / "race" / MARKER).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        claim_folder(tmp_path / "race", KIND)


def test_a_process_killed_while_claiming_leaves_a_folder_that_can_be_claimed(tmp_path):
    (tmp_path / f"{MARKER}.partial").write_text('{"ki')
    claim_folder(tmp_path, KIND)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_releasing_removes_what_was_written_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    claim_folder(folder, KIND)
    (folder / "recipe.toml").write_text("")
    (folder / "checkpoints").mkdir()
    release_folder(folder, ("recipe.toml", "checkpoints", "run.lock"))
    assert not folder.exists()

    claim_folder(folder, KIND)
    (folder / "checkpoints" / "mine").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    release_folder(folder, ("recipe.toml", "checkpoints", "run.lock"))
    assert sorted(contents(folder)) == ["checkpoints", "checkpoints/mine", MARKER, "notes.txt"]


def test_a_file_is_replaced_only_if_it_bears_our_mark(tmp_path):
    path = tmp_path / "page.html"
    check_replaceable(path, "Written by us", "a page")
    path.write_text("")
    check_replaceable(path, "Written by us", "a page")
    path.write_text("x" * 500_000 + "Written by us")
    check_replaceable(path, "Written by us", "a page")
    path.write_text("Written by us" + "x" * 500_000)
    check_replaceable(path, "Written by us", "a page")
    path.write_bytes(b"\xff\x00 thesis")
    with pytest.raises(ConfigError, match=r"page.html exists and is not a page of Heliostat"):
        check_replaceable(path, "Written by us", "a page")
    with pytest.raises(ConfigError, match="is a folder"):
        check_replaceable(tmp_path, "Written by us", "a page")
