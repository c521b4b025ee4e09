"""Exports hold everything, in whole files that other programs read; broken ones are reported and passed over."""

from dataclasses import replace

import pytest

from heliostat.traces import Bank, ImportReport, RowIssues, export_bank, import_rows, read_rows
from tests.support.traces import SOURCE, make_trace, same

pytest.importorskip("pyarrow")


@pytest.fixture
def bank(tmp_path):
    with Bank.open(tmp_path / "traces.bank") as bank:
        for step in (1, 2):
            source = replace(SOURCE, run="a/b", step=step)
            bank.append([make_trace(number, source=source) for number in range(30)])
        yield bank


def imported(path, bank_path):
    report = ImportReport()
    with Bank.open(bank_path) as bank:
        import_rows(bank, read_rows(str(path), report.issues), report)
        return list(bank), report


def test_export_and_import_give_the_same_traces(bank, tmp_path):
    files = export_bank(bank, str(tmp_path / "out"), RowIssues(), rows_per_file=20)
    assert [file.rpartition("/out/")[2] for file in files] == [
        "run=a%2Fb/step=1/traces-000000001-000000020.parquet",
        "run=a%2Fb/step=1/traces-000000021-000000030.parquet",
        "run=a%2Fb/step=2/traces-000000031-000000050.parquet",
        "run=a%2Fb/step=2/traces-000000051-000000060.parquet",
    ]
    assert list((tmp_path / "out").rglob("*.partial")) == []
    traces, report = imported(tmp_path / "out", tmp_path / "copy.bank")
    assert report.issues.num_issues == 0
    assert all(same(one, other) for one, other in zip(traces, bank, strict=True))
    again, report = imported(tmp_path / "out", tmp_path / "copy.bank")
    assert (report.appended.num_new, report.appended.num_known, len(again)) == (0, 60, 60)


def test_a_second_export_writes_the_same_files(bank, tmp_path):
    first = export_bank(bank, str(tmp_path / "out"), RowIssues())
    assert export_bank(bank, str(tmp_path / "out"), RowIssues()) == first
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == len(first) == 2


def test_an_object_store_takes_an_export(bank, tmp_path):
    """fsspec's in-memory store stands for one: no rename, no folders."""
    export_bank(bank, "memory://bucket/traces", RowIssues())
    traces, report = imported("memory://bucket/traces", tmp_path / "copy.bank")
    assert (len(traces), report.issues.num_issues) == (60, 0)


def test_other_readers_see_the_columns_and_the_partitions(bank, tmp_path):
    import pyarrow.dataset

    export_bank(bank, str(tmp_path / "out"), RowIssues())
    table = pyarrow.dataset.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert table.num_rows == 60
    assert set(table["step"].to_pylist()) == {1, 2}
    assert table["policy_step"].to_pylist() == table["step"].to_pylist()
    assert table["completion_ids"][0].as_py() == list(next(iter(bank)).completion_ids)


def test_broken_files_are_reported_and_passed_over(bank, tmp_path):
    files = export_bank(bank, str(tmp_path / "out"), RowIssues())
    out = tmp_path / "out"
    (out / "notes.parquet").write_text("not parquet")
    (out / "cut.parquet").write_bytes((tmp_path / "out").joinpath(files[0]).read_bytes()[:500])
    (out / "half.parquet.partial").write_text("a writer died here")
    (out / "readme.txt").write_text("hello")
    (out / "rows.jsonl").write_text('{"problem_id": 7}\n[1]\n{oops\n')
    traces, report = imported(out, tmp_path / "copy.bank")
    assert len(traces) == 60
    places = [problem.partition(":")[0].rpartition("/")[2] for problem in report.issues.messages]
    assert places == ["cut.parquet", "notes.parquet", "rows.jsonl, row 1", "rows.jsonl, row 2", "rows.jsonl, row 3"]


def test_nothing_to_import_is_said():
    with pytest.raises(FileNotFoundError, match="no traces to import"):
        list(read_rows("/nowhere/at/all", RowIssues()))
