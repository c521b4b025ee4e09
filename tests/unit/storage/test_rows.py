"""JSON lines: read by bytes and \\n alone, appended whole, cut back exactly."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.storage import (
    Damaged,
    StorageError,
    append_rows,
    extent_of,
    keep_rows,
    read_last_rows,
    read_rows,
    truncate_rows,
)
from tests.support.kills import count_events, killed_at

ROWS = [{"step": 1, "text": "a\u2028b\u2029c\x85d\x0be\r\x1c"}, {"step": 2, "text": "等于几？"}, {"step": 3}]


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=5))
def test_any_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    append_rows(path, rows, sync=False)
    assert read_rows(path).rows == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_half_a_surrogate_pair_is_kept(tmp_path):
    append_rows(tmp_path / "a", [{"text": "x\ud83d"}])
    assert read_rows(tmp_path / "a").rows == [{"text": "x\ud83d"}]


@pytest.mark.parametrize("text", ["x", "y" * 70_000], ids=["short", "longer than a block"])
def test_the_last_rows_are_those_at_the_end(tmp_path, text):
    path = tmp_path / "a.jsonl"
    assert read_last_rows(path, 2) == []
    rows = [{"step": step, "text": text} for step in range(9)]
    append_rows(path, rows)
    assert [read_last_rows(path, num) for num in (1, 3, 9, 20)] == [rows[-1:], rows[-3:], rows, rows]
    path.write_bytes(path.read_bytes()[:-5])  # torn
    assert read_last_rows(path, 3) == rows[-4:-1]


def test_torn_at_every_byte_it_is_read_and_appended_to(tmp_path):
    path = tmp_path / "a.jsonl"
    append_rows(path, ROWS)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = [row for number, row in enumerate(ROWS) if whole[:length].count(b"\n") > number]
        if read_rows(path).rows != kept:  # only the line end is missing
            kept.append(ROWS[len(kept)])
            assert whole[length : length + 1] == b"\n"
        assert read_rows(path).rows == kept
        append_rows(path, [{"step": 9}])
        assert read_rows(path).rows == [*kept, {"step": 9}]
        assert not read_rows(path).broken


def test_lines_of_another_shape_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n"x"\n3\nnull\n\xff\n' + b"[" * 100_000 + b'\n{"step": 2}\n\n')
    found = read_rows(path)
    assert found.rows == [{"step": 1}, {"step": 2}]
    assert found.broken == [2, 3, 4, 5, 6, 7]
    assert keep_rows(path, lambda row: row["step"] > 1) == 6
    assert path.read_bytes() == b'{"step": 2}\n'


@pytest.mark.slow
def test_killed_at_every_event_appending_and_cutting(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append_rows(path, ROWS[:2])
    before = path.read_bytes()
    append_rows(other, ROWS[:2])
    for work in (lambda p: append_rows(p, ROWS[2:]), lambda p: keep_rows(p, lambda row: row["step"] < 2)):
        other.write_bytes(before)
        num = count_events(lambda work=work: work(other))
        assert num
        after = other.read_bytes()
        for event in range(1, num + 1):
            path.write_bytes(before)
            killed_at(event, lambda work=work: work(path))
            assert path.read_bytes() in (before, after)


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_rows(path, ROWS[:2])
    before, real = path.read_bytes(), os.write

    def nearly_full(descriptor, data, calls=[]):  # noqa: B006 the count of calls
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, bytes(data)[:5])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(StorageError, match="No space left"):
        append_rows(path, ROWS[2:])
    assert path.read_bytes() == before


def test_rows_are_not_appended_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError):
        append_rows(tmp_path / "a", ROWS)
    assert (tmp_path / "theirs").read_text() == "x"


def test_cut_back_to_what_a_checkpoint_knew(tmp_path):
    path = tmp_path / "a.jsonl"
    append_rows(path, ROWS[:2])
    known, raw = extent_of(path), path.read_bytes()
    append_rows(path, ROWS[2:])
    assert extent_of(path, lambda row: row["step"] < 3) == known
    path.write_bytes(path.read_bytes() + b"\xe7\xad")
    truncate_rows(path, known)
    assert path.read_bytes() == raw
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1
        path.write_bytes(bytes(flipped) + b'{"step": 3}\n')
        with pytest.raises(Damaged):
            truncate_rows(path, known)
    path.write_bytes(raw[:-1])
    with pytest.raises(Damaged):
        truncate_rows(path, known)
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        truncate_rows(path, known)
    truncate_rows(path, extent_of(path))
    assert json.dumps(known.to_json())
