"""Files and folders are the old ones or the new ones: killed at every event, at the second kill too, and by signals."""

import os
import shutil
import signal
import stat

import pytest

from heliostat.storage import (
    FolderDraft,
    StorageError,
    new_folder,
    publish_file,
    publishing,
    recover_folder,
    remove_folder,
    signals_held,
)
from heliostat.storage.errors import is_full, reason_of
from tests.support.forks import in_child
from tests.support.kills import count_events, killed_at

NAMES = ("weights", "state", "inner/part")


def write(folder, text):
    (folder / "inner").mkdir()
    for name in NAMES:
        (folder / name).write_text(text)


def content(folder):
    """What every file of a folder says, which must be the same thing."""
    if not folder.exists():
        return None
    (said,) = {(folder / name).read_text() for name in NAMES}
    return said


def publish(folder, text):
    with publishing(folder) as partial:
        write(partial, text)


def alone(folder):
    return [path.name for path in folder.parent.iterdir()] in ([folder.name], [])


@pytest.mark.slow
def test_a_folder_killed_at_every_event_is_the_old_one_or_the_new_one(tmp_path):
    for case, before in (("replaced", "old"), ("new", None)):
        root = tmp_path / case
        root.mkdir()
        if before:
            publish(root / "count" / "a", before)
        num = count_events(lambda root=root: publish(root / "count" / "a", "new"))
        assert num > 15
        seen = set()
        for event in range(1, num + 1):
            folder = root / str(event) / "a"
            if before:
                publish(folder, before)
            killed_at(event, lambda folder=folder: publish(folder, "new"))
            recover_folder(folder)
            assert content(folder) in (before, "new"), event
            assert not folder.parent.exists() or alone(folder), event
            seen.add(content(folder))
            publish(folder, "next")
            assert content(folder) == "next"
            assert alone(folder)
        assert seen == {before, "new"}


@pytest.mark.slow
def test_recovery_killed_at_every_event_recovers_again(tmp_path):
    """A kill, then a kill of the process that cleans up after it, and so on for every pair."""
    publish(tmp_path / "count" / "a", "old")
    num = count_events(lambda: publish(tmp_path / "count" / "a", "new"))
    for first in range(1, num + 1):
        left = tmp_path / f"{first}" / "a"
        publish(left, "old")
        killed_at(first, lambda left=left: publish(left, "new"))
        shutil.copytree(left.parent, tmp_path / "copy")
        again = count_events(lambda: recover_folder(tmp_path / "copy" / "a"))
        for second in range(1, again + 1):
            shutil.rmtree(tmp_path / "copy")
            shutil.copytree(left.parent, tmp_path / "copy")
            killed_at(second, lambda: recover_folder(tmp_path / "copy" / "a"))
            recover_folder(tmp_path / "copy" / "a")
            assert content(tmp_path / "copy" / "a") in ("old", "new")
            assert alone(tmp_path / "copy" / "a")
        shutil.rmtree(tmp_path / "copy")


def test_a_folder_is_removed_whole_or_not(tmp_path):
    publish(tmp_path / "count" / "a", "old")
    num = count_events(lambda: remove_folder(tmp_path / "count" / "a"))
    for event in range(1, num + 1):
        folder = tmp_path / str(event) / "a"
        publish(folder, "old")
        killed_at(event, lambda folder=folder: remove_folder(folder))
        recover_folder(folder)
        assert content(folder) in (None, "old")
        assert alone(folder)


def test_a_file_killed_at_every_event(tmp_path):
    path = tmp_path / "a.json"
    publish_file(path, "old")
    num = count_events(lambda: publish_file(tmp_path / "other", "new"))
    assert num >= 5
    for event in range(1, num + 1):
        publish_file(path, "old")
        killed_at(event, lambda: publish_file(path, "new"))
        assert path.read_text() in ("old", "new")
        publish_file(path, "next")
        assert path.read_text() == "next"
        assert not path.with_name("a.json.partial").exists()


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    publish(tmp_path / "a", "old")

    def fail():
        with publishing(tmp_path / "a") as partial:
            (partial / "weights").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert content(tmp_path / "a") == "old"
    assert alone(tmp_path / "a")


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    for name in ("a.json", "b.json.partial"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    publish_file(tmp_path / "a.json", "ours")
    publish_file(tmp_path / "b.json", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text() == "ours"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "c.partial").symlink_to(tmp_path / "folder")
    publish(tmp_path / "c", "ours")
    with pytest.raises(StorageError, match="link"):
        FolderDraft(tmp_path / "link")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, umask):
    def work():
        os.umask(umask)
        publish_file(tmp_path / "file", "x")
        with publishing(tmp_path / "folder") as partial:
            write(partial, "x")
            (partial / "weights").chmod(0o600)
            (partial / "inner").chmod(0o700)

    assert os.waitpid(in_child(work), 0)[1] == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {
        **dict.fromkeys(("file", "weights", "state", "part"), files),
        **dict.fromkeys(("folder", "inner"), folders),
    }


def test_a_full_disk_is_named_and_spares_what_was_there(tmp_path, monkeypatch):
    publish_file(tmp_path / "a", "old")

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"could not write .*/a \(No space left on device\)"):
        publish_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_signals_wait_until_the_folder_is_in_its_place(tmp_path):
    heard = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert heard == []
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.slow
def test_two_writers_take_turns(tmp_path):
    """Many processes publish one folder at once; it is always somebody's whole one."""

    def work(text):
        for _ in range(20):
            publish(tmp_path / "a", text)

    publish(tmp_path / "a", "first")
    children = [in_child(lambda text=text: work(text)) for text in "xyz"]
    while children:
        pid, status = os.waitpid(children[0], os.WNOHANG)
        if pid:
            assert status == 0
            children.pop(0)
        recover_folder(tmp_path / "a")
    assert content(tmp_path / "a") in "xyz"
    assert alone(tmp_path / "a")


def test_a_new_folder_is_nobody_elses(tmp_path):
    assert [new_folder(tmp_path / "run").name for _ in range(3)] == ["run", "run-2", "run-3"]


@pytest.mark.parametrize(
    "said",
    [
        "No space left on device (os error 28)",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 70720 vs 70608",
    ],
)
def test_a_full_disk_is_told_in_whatever_words_a_library_says_it(said):
    assert is_full(Exception(said))
    assert reason_of(RuntimeError(said)) == os.strerror(28)
    assert not is_full(RuntimeError("unexpected key"))
    assert reason_of(RuntimeError("unexpected key")) == "unexpected key"
