"""The bank keeps what it said it kept: against reopening, copies, other writers, foreign files and kill -9."""

import os
import random
import signal
import sqlite3
import struct
import tempfile
import time
from pathlib import Path

import pytest

from heliostat.traces import Attempts, Bank, BankError, check_bank
from tests.support.forks import in_child
from tests.support.traces import SOURCE, make_trace, same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.bank"


def test_traces_come_back_as_they_were_in_the_order_of_writing(path):
    written = [make_trace(number) for number in range(40)]
    with Bank.open(path) as bank:
        assert bank.append(written[:25]).num_new == 25
        bank.append(written[25:])
    with Bank.open(path, create=False) as bank:
        read = list(bank)
        assert len(bank) == 40
    assert all(same(one, other) for one, other in zip(read, written, strict=True))


def test_what_nobody_knows_comes_back_unknown(path):
    from dataclasses import replace

    source = replace(SOURCE, temperature=float("nan"))
    with Bank.open(path) as bank:
        bank.append([make_trace(source=source, logp_gen=(), prefix_ids=(70_000,), cut="band:1")])
        (read,) = bank
    assert read.source.temperature != read.source.temperature
    assert (len(read.logp_gen), read.prefix_ids, read.cut) == (0, (70_000,), "band:1")
    assert read.all_ids == (70_000, *read.completion_ids)


def test_a_copy_is_not_stored_twice(path):
    """An event is a copy if its random stream, run and step are the same; content without a stream if it is equal."""
    from dataclasses import replace

    with Bank.open(path) as bank:
        bank.append([make_trace(1), make_trace(2)])
        appended = bank.append([make_trace(2), make_trace(3), make_trace(3)])
        assert (appended.num_new, appended.num_known) == (1, 2)
        again = replace(make_trace(1), seed=99)  # the same words, drawn another time
        later = replace(make_trace(1), source=replace(SOURCE, step=4))
        assert bank.append([again, later]).num_new == 2
        imported = [make_trace(1, seed=0), make_trace(1, seed=0, source=replace(SOURCE, run="other"))]
        assert bank.append(imported).num_new == 1


def test_a_failed_append_leaves_nothing_behind(path):
    with Bank.open(path) as bank:
        bank.append([make_trace(0)])

        def breaks():
            yield make_trace(1)
            raise KeyError("half way")

        with pytest.raises(KeyError):
            bank.append(breaks(), [Attempts("c", "p", 0, 8, 1, 1.0)])
        assert len(bank) == 1
        assert bank.attempts("c") == []
        bank.append([make_trace(1)])  # the memory of rolled-back rows is dropped too
        assert [trace.problem_id for trace in bank] == ["sums/0", "sums/1"]


def test_traces_cannot_be_changed_or_removed(path):
    with Bank.open(path) as bank:
        bank.append([make_trace(0)])
    other = sqlite3.connect(path)
    for statement in ("DELETE FROM traces", "UPDATE traces SET reward = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
    other.close()


def test_pick_takes_the_oldest_successes_of_each_problem(path):
    from dataclasses import replace

    with Bank.open(path) as bank:
        traces = [make_trace(n, problem=n % 3, success=n % 2 == 0) for n in range(30)]
        bank.append(traces)
        foreign = replace(SOURCE, tokenizer="other")
        bank.append([make_trace(90, problem=5, source=foreign)])
        picked = bank.pick(["sums/2", "sums/0", "sums/5", "sums/nowhere"], 2, tokenizer="tok")
        assert list(picked) == ["sums/2", "sums/0"]
        assert [trace.seed - 1 for trace in picked["sums/0"]] == [0, 6]
        assert [trace.seed - 1 for trace in picked["sums/2"]] == [2, 8]
        failures = bank.pick(["sums/0"], 3, tokenizer="tok", successes_only=False)["sums/0"]
        assert [trace.seed - 1 for trace in failures] == [0, 3, 6]


def test_rounds_of_attempts_are_counted_once(path):
    rounds = [Attempts("campaign", "p", number, 16, number, 2.0) for number in range(3)]
    with Bank.open(path) as bank:
        bank.append([], rounds[:2])
        bank.append([], rounds[1:])
        assert bank.attempts("campaign") == rounds
        assert bank.attempts("another") == []


def test_files_that_are_no_banks_are_named_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, but long enough to have a header " * 40)
    foreign = tmp_path / "foreign.db"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE theirs (x)")
    database.commit()
    database.close()
    for file in (text, foreign):
        before = file.read_bytes()
        with pytest.raises(BankError, match=str(file)):
            Bank.open(file)
        assert file.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        Bank.open(tmp_path / "nowhere.bank", create=False)
    assert not (tmp_path / "nowhere.bank").exists()


def test_a_newer_format_is_refused(path):
    Bank.open(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    with pytest.raises(BankError, match="format 99"):
        Bank.open(path)


def test_two_writers_at_once_lose_nothing(path):
    Bank.open(path).close()

    def write(first):
        with Bank.open(path) as bank:
            for number in range(first, first + 300, 10):
                bank.append([make_trace(n) for n in range(number, number + 10)])

    children = [in_child(lambda first=first: write(first)) for first in (0, 200, 1000)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    with Bank.open(path) as bank:
        seeds = sorted(trace.seed - 1 for trace in bank)
        assert seeds == [*range(500), *range(1000, 1300)]  # 100 of them were written by two processes
        assert check_bank(bank).num_issues == 0


@pytest.fixture
def quick_path(tmp_path):
    """On a memory disk where there is one: what a killed process leaves behind is the same, and a hundred are quick."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield tmp_path / "traces.bank"
        return
    with tempfile.TemporaryDirectory(dir=folder) as quick:
        yield Path(quick) / "traces.bank"


@pytest.mark.slow
def test_kill_9_during_an_append_loses_no_committed_trace(quick_path):
    """A hundred writers are killed at random instants; each reports the batches that were committed through a pipe."""
    path, batch, kills = quick_path, 40, 100
    Bank.open(path).close()
    randomness = random.Random(0)
    next_batch = died_in_append = 0
    for _ in range(kills):
        reader, writer = os.pipe()

        def work(first=next_batch, writer=writer):
            with Bank.open(path) as bank:
                for number in range(first, first + 10_000):
                    os.write(writer, struct.pack("<cI", b"b", number))
                    bank.append([make_trace(number * batch + n) for n in range(batch)])
                    os.write(writer, struct.pack("<cI", b"c", number))

        child = in_child(work)
        os.close(writer)
        said = os.read(reader, 5)  # it has begun
        time.sleep(randomness.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while chunk := os.read(reader, 65536):
            said += chunk
        os.close(reader)
        last = [struct.unpack_from("<cI", said, at) for at in range(0, len(said), 5)][-1:]
        committed = [number for kind, number in struct.iter_unpack("<cI", said) if kind == b"c"]
        died_in_append += bool(last) and last[0][0] == b"b"
        with Bank.open(path, create=False) as bank:
            stored = {(row[0] - 1) // batch for row in bank.query("SELECT seed FROM traces")}
            assert len(bank) == len(stored) * batch  # every batch is whole
            assert stored >= set(committed)
        next_batch = max(stored, default=-1) + 1
    assert died_in_append > kills // 10  # the kills really came in the middle of appends
    with Bank.open(path) as bank:
        assert check_bank(bank).num_issues == 0
