"""Trajectories in a bank: every turn comes back as it was, damage is found, and earlier formats still open."""

import math
import sqlite3

import numpy as np
import pytest

from heliostat.cli import main
from heliostat.tasks.task import Task
from heliostat.traces import Bank, BankError, ImportReport, RowIssues, check_bank, export_bank, import_rows, read_rows
from heliostat.traces.columns import from_columns, to_columns
from heliostat.traces.cuts import PrefixSource, cut_prefix_source
from heliostat.traces.schema import FORMAT_1, UPGRADES
from heliostat.types import Completion, Cut, Problem, StopReason, Turn
from tests.support.traces import SOURCE, make_trace, same

TURNS = (Turn(0, 2, None, None, 1), Turn(4, 5, 0.1, False, 2, 1, True), Turn(7, 9, 1.0, True))


def trajectory(number=0, **changes):
    """A trajectory of one given and two sampled turns."""
    fields = {
        "prefix_ids": (11, 12, 13, 14),
        "completion_ids": (15, 16, 17, 18, 19),
        "logp_gen": -np.arange(1, 4, dtype=np.float32) / 7,
        "turns": TURNS,
        "cut": str(Cut("prefix", 4)),
        "source": SOURCE.__class__("tok", run="run", step=3, environment="lookup"),
        **changes,
    }
    return make_trace(number, **fields)


def test_turns_come_back_from_bank_columns_and_parquet(tmp_path):
    written = [trajectory(), make_trace(1), trajectory(2, turns=(Turn(4, 9),), prefix_ids=(1, 2, 3, 4), logp_gen=())]
    with Bank.open(tmp_path / "traces.bank") as bank:
        bank.append(written)
        assert all(same(one, other) for one, other in zip(bank, written, strict=True))
        assert check_bank(bank).lines() == []
        assert all(same(from_columns(to_columns(one)), one) for one in written)
        pytest.importorskip("pyarrow")
        export_bank(bank, str(tmp_path / "out"), RowIssues())
    report = ImportReport()
    with Bank.open(tmp_path / "copy.bank") as copy:
        import_rows(copy, read_rows(str(tmp_path / "out"), report.issues), report)
        assert report.issues.lines() == []
        read = {trace.seed: trace for trace in copy}
    assert all(same(read[one.seed], one) for one in written)


def test_given_and_sampled_turns_are_told_apart():
    trace = trajectory()
    assert trace.given_turns == TURNS[:1]
    assert [(turn.start, turn.end) for turn in trace.sampled_turns] == [(0, 1), (3, 5)]
    assert trace.num_sampled == 3
    assert make_trace(2).num_sampled == len(make_trace(2).completion_ids), "without turns all of it was sampled"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logp_gen": np.zeros(5, np.float32)}, "one per completion token that was sampled"),
        ({"turns": (Turn(0, 2), Turn(1, 9))}, "overlap"),
        ({"turns": (*TURNS[:2], Turn(7, 10))}, "reach beyond its 9 tokens"),
        ({"turns": (Turn(0, 5), Turn(7, 9))}, "begins in its prefix and ends after it"),
        ({"turns": TURNS[:1], "logp_gen": ()}, "at least one that was sampled"),
        ({"turns": (*TURNS[:2], Turn(7, 9, math.nan))}, "finite"),
        ({"turns": (*TURNS[:2], Turn(7, 9, num_calls=-1))}, "fewer than 0"),
    ],
)
def test_turns_must_fit_the_ids(changes, message):
    with pytest.raises(ValueError, match=message):
        trajectory(**changes)


@pytest.mark.parametrize(
    "turns",
    [
        "x",
        [3],
        [{"start": 0}],
        [{"start": 0, "end": 1.0}],
        [{"start": 0, "end": 1, "name": 1}],
        [{"start": -1, "end": 1}],
    ],
)
def test_columns_of_turns_are_checked(turns):
    with pytest.raises(ValueError, match="column 'turns"):
        from_columns({**to_columns(make_trace(4)), "turns": turns})


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE traces SET turns = '' WHERE id = 1",
        "UPDATE traces SET turns = replace(turns, '0.1', '0.2') WHERE id = 1",
        "UPDATE traces SET turns = substr(turns, 3) WHERE id = 1",
        "UPDATE traces SET turns = 7 WHERE id = 1",
        "UPDATE sources SET environment = 'maze'",
    ],
)
def test_damaged_turns_are_found(tmp_path, statement):
    path = tmp_path / "traces.bank"
    with Bank.open(path) as bank:
        bank.append([trajectory()])
    database = sqlite3.connect(path)
    database.execute("DROP TRIGGER traces_are_final")
    database.execute(statement)
    database.commit()
    database.close()
    with Bank.open(path) as bank:
        assert check_bank(bank).messages[0].startswith("row 1: damaged")
        with pytest.raises(BankError, match="row 1"):
            list(bank)


def test_a_bank_from_before_there_were_turns_is_read_and_grows_them(tmp_path):
    path, new = tmp_path / "traces.bank", tmp_path / "new.bank"
    written = [make_trace(number) for number in range(20)]
    with Bank.open(new) as bank:
        bank.append(written)
    old = sqlite3.connect(path)
    for statement in (*FORMAT_1.split(";\n"), *UPGRADES[1]):
        old.execute(statement)
    source = sqlite3.connect(new)
    for table, width in (("problems", 3), ("contexts", 7), ("sources", 10), ("traces", 14)):
        rows = [row[:width] for row in source.execute(f"SELECT * FROM {table}")]
        old.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)
    old.execute(f"PRAGMA application_id = {source.execute('PRAGMA application_id').fetchone()[0]}")
    old.commit()
    assert old.execute("PRAGMA user_version").fetchone() == (2,)
    old.close()
    with Bank.open(path, create=False) as bank, Bank.open(path) as other:
        assert check_bank(bank).lines() == []
        assert all(same(one, two) for one, two in zip(bank, written, strict=True))
        assert bank.append([trajectory(50), written[3]]).num_known == 1, "checksums and digests did not change"
        assert other.append([trajectory(51)]).num_new == 1
        assert check_bank(other).lines() == []
        *_, last = other
        assert last.turns == TURNS
        assert len(other.query("SELECT id FROM sources")) == 2


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_trajectory_is_cut_where_a_reply_ends(share):
    ids = tuple(range(100, 112))
    source = PrefixSource("p", ids, 16, (1, 2), (Turn(0, 3), Turn(5, 8)))
    cut = cut_prefix_source(source, share, source.reply_ends)
    assert len(cut) == min((0, 5, 12), key=lambda at: (abs(at - min(round(16 * share), 12)), at))


def test_turns_that_were_given_count_in_the_return():
    task = Task("t", (Problem("p", "t", "?"),), (), ())
    completion = Completion(
        (5, 6), np.zeros(2), np.zeros(2), StopReason.ENVIRONMENT_DONE, "", turns=(Turn(0, 2, 0.75),)
    )
    assert task.trajectory_verdict(completion).success is False
    verdict = task.trajectory_verdict(completion, (Turn(0, 3, 0.25),))
    assert (verdict.reward, verdict.success) == (1.0, True)


def test_show_prints_turns(tmp_path, capsys):
    path = tmp_path / "traces.bank"
    with Bank.open(path) as bank:
        bank.append([make_trace(1), trajectory(2, text="say \x1b[31m52")])
    assert main(["traces", "show", str(path), "--problem", "sums/2"]) == 0
    said = capsys.readouterr().out
    assert "text 1" not in said
    assert "environment lookup" in said
    assert "turn 1: 2 tokens, given, 1 calls" in said
    assert "turn 2: 1 tokens, reward 0.1, no success, 2 calls, 1 of them failed, not understood" in said
    assert "say ␛[31m52" in said
    assert main(["traces", "show", str(path), "--num", "1"]) == 0
    assert "text 1" in capsys.readouterr().out
