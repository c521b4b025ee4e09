"""A bank that was changed behind its back, filled its disk, is locked or gone: a sentence each, nothing in silence."""

import random
import sqlite3

import pytest

from heliostat.cli import main
from heliostat.traces import Attempts, Bank, BankError, RowIssues, check_bank, export_bank, summarise, whole_traces
from heliostat.traces import bank as bank_module
from heliostat.traces.schema import FORMAT_1
from tests.support.traces import make_trace, same


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "traces.bank"
    with Bank.open(path) as bank:
        bank.append([make_trace(number) for number in range(60)], [Attempts("c", "sums/1", 0, 4, 1, 2.0)])
    settle(path)
    return path


def settle(path):
    """Everything into the file itself."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def change(path, statement):
    database = sqlite3.connect(path)
    database.execute("DROP TRIGGER IF EXISTS traces_are_final")
    database.execute(statement)
    database.commit()
    database.close()


COLUMNS = {
    "logp": "CAST(x'000080bf' || substr(logp, 5) AS BLOB)",
    "text": "'x' || text",
    "reward": "reward + 0.5",
    "success": "1 - success",
    "stop": "'length'",
    "flops": "flops + 1",
    "seed": "seed + 1",
    "completion": "CAST(substr(completion, 1, 1) || x'0900' || substr(completion, 4) AS BLOB)",
    "checksum": "x'000000000000000000000000'",
    "problem": "problem + 1",
    "source": "77",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_that_training_reads_is_checked(path, column):
    change(path, f"UPDATE traces SET {column} = {COLUMNS[column]} WHERE id = 7")
    with Bank.open(path) as bank:
        issues = RowIssues()
        assert len(list(whole_traces(bank, issues))) == 59
        assert issues.messages[0].startswith("row 7: damaged")
        with pytest.raises(BankError, match="row 7"):
            list(bank)
        with pytest.raises(BankError, match="row 7"):
            summarise(bank)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sources SET temperature = 2",
        "UPDATE sources SET policy = 'x'",
        "UPDATE sources SET step = 'much'",
        "UPDATE contexts SET cut = 'band:9' WHERE id = 3",
        "UPDATE problems SET task = 'x' WHERE id = 3",
        "UPDATE problems SET name = 'x' WHERE id = 3",
    ],
)
def test_what_traces_share_is_checked(path, statement):
    change(path, statement)
    with Bank.open(path) as bank:
        assert check_bank(bank).num_issues > 0


def test_attempts_are_checked(path):
    change(path, "UPDATE attempts SET flops = 1e9")
    with Bank.open(path) as bank:
        assert check_bank(bank).lines() == [f"file: trace bank {path}: row 1 of its attempts is damaged"]
        with pytest.raises(BankError, match="row 1 of its attempts"):
            bank.attempts("c")


def test_pick_passes_damaged_traces_over_and_says_so(path):
    with Bank.open(path) as bank:
        wanted = "sums/3"
        before = bank.pick([wanted], 2, tokenizer="tok")[wanted]
        row = bank.query("SELECT id FROM traces WHERE seed = ?", (before[0].seed,))[0][0]
    change(path, f"UPDATE traces SET text = 'x' WHERE id = {row}")
    with Bank.open(path) as bank:
        issues = RowIssues()
        assert bank.pick([wanted], 1, tokenizer="tok", issues=issues).get(wanted, []) != before[:1]
        assert f"row {row}" in issues.lines()[0]
        with pytest.raises(BankError, match=f"row {row}"):
            bank.pick([wanted], 1, tokenizer="tok")


@pytest.mark.slow
def test_no_flip_changes_a_trace_unseen(path):
    """Random flips: what is still read is what was written, or the damage is reported."""
    whole = path.read_bytes()
    with Bank.open(path) as bank:
        written = {trace.seed: trace for trace in bank}
    randomness = random.Random(0)
    reported = 0
    for _ in range(300):
        position, bit = randomness.randrange(len(whole)), randomness.randrange(8)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        path.write_bytes(bytes(flipped))
        try:
            with Bank.open(path) as bank:
                issues = check_bank(bank)
                read = list(whole_traces(bank, RowIssues()))
        except BankError:
            reported += 1
            continue
        reported += issues.num_issues > 0
        unchanged = len(read) == len(written) and all(same(trace, written[trace.seed]) for trace in read)
        assert unchanged or issues.num_issues, (position, bit)
    assert reported > 30  # much of a file this small is empty


def old_bank(path):
    """A bank as the version before checksums wrote it."""
    database = sqlite3.connect(path)
    for statement in FORMAT_1.split(";\n"):
        database.execute(statement)
    new = sqlite3.connect(path.with_name("new.bank"))
    for table, width in (("problems", 3), ("contexts", 7), ("sources", 10), ("traces", 13), ("attempts", 7)):
        rows = [row[:width] for row in new.execute(f"SELECT * FROM {table}")]
        database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)
    (application,) = new.execute("PRAGMA application_id").fetchone()
    database.execute(f"PRAGMA application_id = {application}")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    new.close()


def test_banks_of_the_earlier_format_are_read_and_grow_checksums(path):
    path.rename(path.with_name("new.bank"))
    old_bank(path)
    with Bank.open(path, create=False) as bank:
        assert check_bank(bank).lines() == []
        assert len(list(bank)) == 60
        assert bank.attempts("c") == [Attempts("c", "sums/1", 0, 4, 1, 2.0)]
    settle(path)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (1,)
    with Bank.open(path) as one, Bank.open(path) as other:
        assert one.append([make_trace(100)], [Attempts("c", "sums/1", 1, 4, 1, 2.0)]).num_new == 1
        assert other.append([make_trace(101)]).num_new == 1
        assert check_bank(other).lines() == []
        assert check_bank(other).num_read == 62
    change(path, "UPDATE traces SET checksum = NULL WHERE id = 61")
    change(path, "UPDATE traces SET text = 'x' WHERE id = 62")
    with Bank.open(path) as bank:
        assert [line[:6] for line in check_bank(bank).lines()] == ["row 61", "row 62"]


def test_a_full_disk_stores_nothing_and_says_so(path):
    with Bank.open(path) as bank:
        num_pages = bank.query("PRAGMA page_count")[0][0]
        bank.query(f"PRAGMA max_page_count = {num_pages + 1}")
        with pytest.raises(BankError, match="the disk is full"):
            bank.append([make_trace(number, text="long " * 500) for number in range(200, 260)])
        assert len(bank) == 60
        bank.query("PRAGMA max_page_count = 1000000")
        assert bank.append([make_trace(500)]).num_new == 1


def test_a_lock_that_is_held_too_long_is_said(path, monkeypatch):
    monkeypatch.setattr(bank_module, "BUSY_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Bank.open(path) as bank, pytest.raises(BankError, match=r"another process .* more than 0.05 s"):
        bank.append([make_trace(500)])
    holder.execute("ROLLBACK")
    holder.close()


@pytest.mark.parametrize("gone", ["removed", "replaced"])
def test_a_bank_that_vanishes_is_said(path, gone):
    with Bank.open(path) as bank:
        bank.append([make_trace(500)])
        for file in path.parent.glob("traces.bank*"):
            file.unlink()
        if gone == "replaced":
            Bank.open(path).close()
        with pytest.raises(BankError, match="removed or replaced"):
            bank.append([make_trace(501)])


def test_what_is_no_file_is_refused(tmp_path):
    from pathlib import Path

    for path in (tmp_path, Path("/dev/null"), Path("/proc/x.bank")):
        with pytest.raises(BankError, match=str(path)):
            Bank.open(path)


@pytest.mark.slow
def test_commands_on_a_damaged_bank_end_in_sentences(path, tmp_path, capsys):
    whole = path.read_bytes()
    for page in range(len(whole) // 4096):
        damaged = bytearray(whole)
        damaged[page * 4096 : (page + 1) * 4096] = random.Random(page).randbytes(4096)
        path.write_bytes(bytes(damaged))
        for command in (["verify", path], ["stats", path], ["export", path, tmp_path / "out"]):
            code = main(["traces", *map(str, command)])
            said = capsys.readouterr().err
            assert (code == 0) == (said == ""), (page, command)
            assert said.count("\n") <= 21
        assert main(["traces", "verify", str(path)]) in (1, 2), page
        capsys.readouterr()
    path.write_bytes(whole)
    with Bank.open(path) as bank:
        assert export_bank(bank, str(tmp_path / "again"), RowIssues())
