"""Damage is reported with its place, and what is whole still comes out."""

import sqlite3

import pytest

from heliostat.traces import Bank, BankError, RowIssues, check_bank, whole_traces
from tests.support.traces import make_trace


def damage(path, statement):
    """Change a stored row behind the bank's back."""
    database = sqlite3.connect(path)
    database.execute("DROP TRIGGER traces_are_final")
    database.execute(statement)
    database.commit()
    database.close()


@pytest.fixture
def path(tmp_path):
    with Bank.open(tmp_path / "traces.bank") as bank:
        bank.append([make_trace(number) for number in range(1200)])
    return tmp_path / "traces.bank"


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE traces SET completion = x'02' || x'0500' WHERE id = 7",
        "UPDATE traces SET completion = x'09' WHERE id = 7",
        "UPDATE traces SET logp = x'00000000' WHERE id = 7",
        "UPDATE traces SET reward = 'much' WHERE id = 7",
        "UPDATE traces SET stop = 'tired' WHERE id = 7",
    ],
)
def test_a_damaged_row_is_reported_and_passed_over(path, statement):
    damage(path, statement)
    with Bank.open(path) as bank:
        issues = check_bank(bank)
        assert issues.num_read == 1199
        assert [problem.split(":")[0] for problem in issues.messages] == ["row 7"]
        assert 7 not in {trace.seed for trace in whole_traces(bank, RowIssues())}


def test_a_damaged_page_costs_its_own_rows_only(path):
    with sqlite3.connect(path) as database:
        page_size = database.execute("PRAGMA page_size").fetchone()[0]
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    # The file's last leaf page of text rows is found by its newest content.
    at = content.rfind(b"text 900 ")
    start = at // page_size * page_size
    content[start : start + page_size] = b"\xff" * page_size
    path.write_bytes(bytes(content))
    with Bank.open(path) as bank:
        issues = check_bank(bank)
    assert issues.num_issues > 0
    assert 900 <= issues.num_read < 1200


def test_a_truncated_file_is_named_with_the_way_out(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BankError, match=r"traces.bank cannot be opened .* restore it from an export"):
        Bank.open(path)


def test_many_findings_are_counted_and_few_are_shown():
    issues = RowIssues()
    for number in range(50):
        issues.report(f"row {number}", "bad")
    assert len(issues.lines()) == 21
    assert issues.lines()[-1] == "... and 30 more"
