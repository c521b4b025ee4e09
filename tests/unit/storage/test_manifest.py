"""A checked folder: every flip, truncation, exchange and loss is found, in its files and in the manifest."""

import pytest

from heliostat.storage import MANIFEST, Damaged, check_folder, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(40)))
    (tmp_path / "inner" / "part").write_bytes(b"part")
    (tmp_path / "empty").touch()
    write_manifest(tmp_path, {"step": 4})
    return tmp_path


def test_what_was_written_is_accepted(folder):
    assert check_folder(folder) == read_manifest(folder)
    assert read_manifest(folder)["about"] == {"step": 4}
    assert set(read_manifest(folder)["files"]) == {"weights", "inner/part", "empty"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "inner/part", MANIFEST])
def test_every_flip_is_found(folder, name):
    path = folder / name
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(Damaged, match=name):
            (read_manifest if name == MANIFEST else check_folder)(folder)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(Damaged, match=name):
            check_folder(folder)
    path.write_bytes(raw)
    check_folder(folder)


def test_what_is_missing_exchanged_or_a_link_is_named(folder):
    (folder / "empty").unlink()
    with pytest.raises(Damaged, match="empty is missing"):
        check_folder(folder)
    (folder / "empty").symlink_to(folder / "weights")
    with pytest.raises(Damaged, match="link"):
        check_folder(folder)
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    with pytest.raises(Damaged, match="cannot be read"):
        check_folder(folder)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(Damaged, match="damaged"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(Damaged, match="is missing"):
        read_manifest(folder)
