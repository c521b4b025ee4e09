"""Folders of files of every kind give the rows that are in them, and say what is wrong by file and place."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from heliostat.config import ConfigError
from heliostat.tasks.data.rows import read_rows

ROWS = [{"prompt": f'{i}, "é"\n?', "answer": f"00{i}"} for i in range(3)]


def as_table(separator: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "answer"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
KINDS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": LINES,
    "a.csv": as_table(","),
    "bom.csv": b"\xef\xbb\xbf" + as_table(","),
    "a.tsv": as_table("\t"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.csv.gz": gzip.compress(as_table(",")),
}


def read(folder: Path, split: str = "train") -> list[dict[str, object]]:
    return [row.columns for row in read_rows(str(folder), split, "")]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows_as_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[name])
    (tmp_path / "README.md").write_text("About these.")
    assert read(tmp_path) == ROWS
    assert read(tmp_path / name) == ROWS


def test_files_are_joined_in_order_and_split_by_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")
    assert read(tmp_path) == [{"prompt": "a.jsonl"}, {"prompt": "b.jsonl"}]
    with pytest.raises(ConfigError, match="has no split 'test'; it has: train"):
        read(tmp_path, "test")
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "t"}) + "\n")
    with pytest.raises(ConfigError, match=r"files of the split test, and 'a.jsonl', whose name says no split"):
        read(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / f"train-{name}.jsonl")
    assert len(read(tmp_path)) == 2
    assert read(tmp_path, "test") == [{"prompt": "t"}]


BAD = {
    "cells": ("a.csv", b"prompt,answer\n1,2\n3\n", r"a\.csv, row 2: 1 cells under 2 columns"),
    "names": ("a.csv", b"prompt,prompt\n1,2\n", r"a\.csv, line 1: two columns have the same name"),
    "latin": ("a.csv", "prompt\nx\né\n".encode("latin-1"), r"a\.csv, line 3: not UTF-8 .* but Latin-1"),
    "array": ("a.json", b'[{"prompt": "x"}, 3]', r"a\.json, row 2: expected a JSON object with columns, got int"),
    "object": ("a.json", b'{"data": [{"prompt": "x"}]}', "is one JSON object with data; expected an array of objects"),
    "packed": ("a.jsonl.gz", gzip.compress(LINES)[:-12], "is not a readable gzip file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_in_a_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_pattern_and_a_file_of_another_kind_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(KINDS["a.csv"])
    with pytest.raises(ConfigError, match=r"is a pattern \(1 files match\); put the files into a folder"):
        read_rows(str(tmp_path / "*.csv"), "train", "")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"a.zip' is no data file; its name must end in .jsonl, .ndjson"):
        read_rows(str(tmp_path / "a.zip"), "train", "")
