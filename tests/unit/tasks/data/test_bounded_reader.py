"""Damaged and hostile data files are refused with file and place, before anything is made of them."""

import json
import random
import re
from pathlib import Path

import pytest

from heliostat.tasks.data import bounded_reader
from heliostat.tasks.data.bounded_reader import jsonl_rows, parquet_rows
from heliostat.tasks.data.rows import read_rows

GOOD = b'{"prompt": "1 + 1", "answer": "2"}\n'
BAD = {
    "latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "not UTF-8 .byte 16: 0xe9"),
    "utf-16": ('{"prompt": "x"}'.encode("utf-16"), "not UTF-8"),
    "torn": ('{"prompt": "漢'.encode()[:-1], "not UTF-8"),
    "surrogate": (b'{"prompt": "\\ud83d"}', "'prompt' holds half of a character .U.D83D"),
    "surrogate inside": (b'{"x": [{"y": "\\udc00"}]}', "'x' holds half of a character"),
    "surrogate key": (b'{"\\udc00": 1}', "half of a character"),
    "surrogate inner key": (b'{"x": {"\\udc00": 1}}', "half of a character"),
    "infinity": (b'{"answer": -Infinity}', "-Infinity is no number"),
    "digits": (b'{"answer": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "deep open": (b'{"x": ' + b"[" * 100_000, "nested more than 64 deep"),
    "deep closed": (b'{"x": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
    "deep objects": (b'{"x":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
    "list": (b"[1]", "expected a JSON object"),
    "nul": (b'{"x": "\x00"}', "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    line, reason = BAD[name]
    file = tmp_path / "b.jsonl"
    file.write_bytes(GOOD * 4 + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=rf"^b\.jsonl, line 5: .*{reason}"):
        list(read_rows(str(file), "train", ""))


def test_an_endless_line_is_refused_without_reading_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_reader, "MAX_ROW", 1 << 20)
    file = tmp_path / "b.jsonl"
    file.write_bytes(GOOD + b'{"x": "' + b"a" * (3 << 20))
    with pytest.raises(ValueError, match=r"line 2: longer than 1 MiB"):
        list(jsonl_rows(file))


def test_lines_end_with_a_newline_alone_and_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    text = "a\u2028b\u2029c\u0085d"
    file.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\r\n" + b"\n" + GOOD
    )
    rows = list(read_rows(str(file), "train", ""))
    assert [row.place for row in rows] == ["a.jsonl, line 1", "a.jsonl, line 3"]
    assert rows[0].columns == {"prompt": text}


def write_parquet(file: Path, num: int = 300, text: str = "") -> list[dict[str, str]]:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": text or f"{i} + {i}", "answer": str(2 * i)} for i in range(num)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, write_page_checksum=True)
    return rows


def test_no_flipped_bit_of_a_checked_parquet_file_changes_a_row_unseen(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    rows = write_parquet(file)
    assert [row.columns for row in parquet_rows(file)] == rows
    whole, draw = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            found = [tuple(row.columns.values()) for row in parquet_rows(file)]
        except ValueError:  # and no other kind
            refused += 1
        else:
            assert found == [tuple(row.values()) for row in rows]
    assert refused > 50


def test_a_truncated_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    write_parquet(file)
    whole = file.read_bytes()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"^p\.parquet is not a readable Parquet file"):
            list(parquet_rows(file))


def test_a_compression_bomb_is_refused_before_it_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.parquet"
    write_parquet(file, num=600, text="a" * 10_000)
    assert file.stat().st_size < 100_000
    monkeypatch.setattr(bounded_reader, "MAX_TABLE", 1 << 20)
    with pytest.raises(ValueError, match="takes more than 1 MiB once it is decompressed"):
        list(parquet_rows(file))


def test_nan_is_missing_in_every_kind_of_file(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "n.jsonl").write_bytes(b'{"answer": NaN, "meta": [{"level": NaN}]}\n')
    rows = [{"answer": float("nan"), "meta": [{"level": float("nan")}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "n.parquet")
    for name in ("n.jsonl", "n.parquet"):
        found = list(read_rows(str(tmp_path / name), "train", ""))
        assert [row.columns for row in found] == [{"answer": None, "meta": [{"level": None}]}], name


ENCODINGS = {
    "UTF-16": "utf-16",
    "UTF-32": "utf-32",
    "UTF-16 .*UTF-16LE": "utf-16-le",
    "UTF-16 .*UTF-16BE": "utf-16-be",
    "Latin-1": "latin-1",
    "Windows-1252": "cp1252",
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_in_another_encoding_is_named_with_what_converts_it(name: str, tmp_path: Path) -> None:
    text = '{"prompt": "\xe9t\xe9"}\n' if name == "Latin-1" else '{"prompt": "\xe9 \u20ac"}\n'
    (tmp_path / "e.jsonl").write_bytes((text * 3).encode(ENCODINGS[name]))
    with pytest.raises(ValueError, match=r"^e\.jsonl, line 1: not ") as caught:
        list(read_rows(str(tmp_path / "e.jsonl"), "train", ""))
    assert re.search(name.replace(" .*", ".*"), str(caught.value)), caught.value
    assert "iconv -f" in str(caught.value)
