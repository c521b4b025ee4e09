"""The trace bank: an append-only SQLite file that many processes of one machine write at once.

    with Bank.open(path) as bank:
        bank.append(traces)                                     one transaction: all of them or none
        bank.pick(problem_ids, num=3, tokenizer=fingerprint)    successes by problem, oldest first

The file is in WAL mode: what ``append`` returned from survives the death of the process, whenever it comes. A power cut
may take the last transactions, never a part of one. A trace that is in the bank already is not stored again, so a
resumed run may log its last steps once more.

Left out: network file systems, which WAL does not work on: exchange Parquet files instead (``parquet``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from heliostat.traces.blobs import digest, pack_floats, pack_ids, unpack_floats, unpack_ids
from heliostat.traces.record import Source, Trace
from heliostat.traces.schema import APPLICATION_ID, FORMAT, SCHEMA, SELECT_TRACES
from heliostat.types import StopReason

BUSY_S = 60.0
"""How long a writer waits for another one's transaction, in seconds."""


class BankError(ValueError):
    """A file is not a trace bank, or a damaged one; the message says which and what can be done."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """One round of rejection sampling on one problem: how often it was tried, and what came of it.

    Attributes:
        campaign: names the policy, its sampling settings and the seed; rounds are counted within it.
    """

    campaign: str
    problem_id: str
    round: int
    num: int
    num_success: int
    flops: float


@dataclass(slots=True)
class Appended:
    """What one ``append`` did: traces stored, and copies of stored ones that were passed over."""

    num_new: int = 0
    num_known: int = 0

    def __iadd__(self, other: Appended) -> Self:
        self.num_new += other.num_new
        self.num_known += other.num_known
        return self


class Bank:
    """An open trace bank; use it as a context manager.

    Raises:
        BankError: the file is something else, of a newer format, or damaged.
        FileNotFoundError: there is no such file, and ``create`` is off.
    """

    def __init__(self, path: Path | str, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise FileNotFoundError(2, "there is no trace bank", str(self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        self._contexts: dict[tuple[object, ...], tuple[int, int]] = {}
        self._sources: dict[Source, int] = {}
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise BankError(
                f"{self.path} cannot be opened as a trace bank ({error}); if it once was one, restore it from an "
                "export (heliostat traces import), else choose another path"
            ) from error
        except BankError:
            self._db.close()
            raise

    @classmethod
    def open(cls, path: Path | str, create: bool = True) -> Bank:
        """The bank at ``path``."""
        return cls(path, create)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __len__(self) -> int:
        """Traces in the bank."""
        return int(self._db.execute("SELECT count(*) FROM traces").fetchone()[0])

    # -- writing ----------------------------------------------------------------------------------------------------

    def append(self, traces: Iterable[Trace], attempts: Iterable[Attempts] = ()) -> Appended:
        """Store traces, and the rounds of attempts they came from, in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            rows = [self._row(trace) for trace in traces]
            stored = self._db.executemany(
                "INSERT OR IGNORE INTO traces VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            num_new = max(0, stored.rowcount)
            self._db.executemany(
                "INSERT OR IGNORE INTO attempts VALUES (NULL, ?, ?, ?, ?, ?, ?)", map(astuple, attempts)
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._contexts.clear()  # they may name rows that the rollback took back
            self._sources.clear()
            raise
        return Appended(num_new, len(rows) - num_new)

    def _row(self, trace: Trace) -> tuple[object, ...]:
        context, problem = self._context(trace)
        completion = pack_ids(trace.completion_ids)
        # With a random stream of its own a completion is an event, and equal events both count; without, it is content.
        event = (trace.source.run, trace.source.step, trace.seed) if trace.seed else ()
        return (
            digest(trace.problem_id, pack_ids(trace.prompt_ids), pack_ids(trace.prefix_ids), completion, *event),
            problem,
            context,
            self._source(trace.source),
            completion,
            pack_floats(trace.logp_gen),
            trace.text,
            float(trace.reward),
            int(trace.success),
            str(trace.stop_reason),
            trace.seed,
            float(trace.flops),
        )

    def _context(self, trace: Trace) -> tuple[int, int]:
        key = (trace.problem_id, trace.source.tokenizer, trace.prompt_ids, trace.prefix_ids, trace.cut)
        if key not in self._contexts:
            problem = self._shared("problems", "name", trace.problem_id, (trace.task, trace.problem_id))
            prompt, prefix = pack_ids(trace.prompt_ids), pack_ids(trace.prefix_ids)
            name = digest(trace.problem_id, trace.source.tokenizer, prompt, prefix, trace.cut)
            row = (name, problem, trace.source.tokenizer, prompt, prefix, trace.cut)
            self._contexts[key] = (self._shared("contexts", "digest", name, row), problem)
        return self._contexts[key]

    def _source(self, source: Source) -> int:
        if source not in self._sources:
            name = digest(*astuple(source))
            values = [int(value) if isinstance(value, bool) else value for value in astuple(source)]
            self._sources[source] = self._shared("sources", "digest", name, (name, *values))
        return self._sources[source]

    def _shared(self, table: str, key: str, value: object, row: Sequence[object]) -> int:
        """The id of a row that many traces point to; it is written by the first that needs it."""
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (NULL, {marks})", row)
        return int(self._db.execute(f"SELECT id FROM {table} WHERE {key} = ?", (value,)).fetchone()[0])

    # -- reading ----------------------------------------------------------------------------------------------------

    def pick(
        self, problem_ids: Iterable[str], num: int, *, tokenizer: str, successes_only: bool = True
    ) -> dict[str, list[Trace]]:
        """The oldest ``num`` traces of each problem in one tokenizer's ids; problems without any are left out.

        Args:
            tokenizer: fingerprint of the tokenizer that the ids must belong to.
            successes_only: leave failures out.
        """
        query = SELECT_TRACES + (
            "WHERE t.problem = (SELECT id FROM problems WHERE name = ?) AND c.tokenizer = ?"
            + (" AND t.success = 1" if successes_only else "")
            + " ORDER BY t.id LIMIT ?"
        )
        sources = self.sources()
        found = {}
        for problem_id in dict.fromkeys(problem_ids):
            rows = self._db.execute(query, (problem_id, tokenizer, num)).fetchall()
            if rows:
                found[problem_id] = [to_trace(row, sources) for row in rows]
        return found

    def rows(self, where: str = "", values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Stored rows in the order of writing, a few at a time; ``to_trace`` makes traces of them."""
        cursor = self._db.execute(SELECT_TRACES + where + " ORDER BY t.id", values)
        while rows := cursor.fetchmany(1000):
            yield from rows

    def __iter__(self) -> Iterator[Trace]:
        """Every trace in the order of writing, in bounded memory."""
        sources = self.sources()
        for row in self.rows():
            yield to_trace(row, sources)

    def sources(self) -> dict[int, Source]:
        """Everyone who wrote, by the number that traces refer to."""
        rows = self._db.execute("SELECT * FROM sources").fetchall()
        return {row[0]: _to_source(row[2:]) for row in rows}

    def attempts(self, campaign: str) -> list[Attempts]:
        """The rounds of one campaign of rejection sampling, in order of writing."""
        rows = self._db.execute("SELECT * FROM attempts WHERE campaign = ? ORDER BY id", (campaign,))
        return [Attempts(*row[1:]) for row in rows]

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a reading query on the tables of ``schema``."""
        return self._db.execute(sql, values).fetchall()

    # -- opening ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the tables of a new file, or check that this is a bank."""
        if self._is_empty():
            self._configure()
            self._db.execute("BEGIN IMMEDIATE")  # two processes may create the same bank at once
            if self._is_empty():
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {FORMAT}")
            self._db.execute("COMMIT")
        if self._pragma("application_id") != APPLICATION_ID:  # nothing of that file has been touched
            raise BankError(f"{self.path} is an SQLite file of another program, not a trace bank; choose another path")
        if self._pragma("user_version") > FORMAT:
            raise BankError(
                f"{self.path} has bank format {self._pragma('user_version')}, but this version of heliostat reads "
                f"{FORMAT}; update heliostat"
            )
        self._configure()

    def _is_empty(self) -> bool:
        num_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        return num_tables == 0 and self._pragma("application_id") == 0

    def _configure(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])


def _to_source(values: Sequence[Any]) -> Source:
    tokenizer, policy, run, step, temperature, max_new_tokens, verifier, reencoded = values
    temperature = float("nan") if temperature is None else temperature
    return Source(tokenizer, policy, run, step, temperature, max_new_tokens, verifier, bool(reencoded))


def to_trace(row: Sequence[Any], sources: Mapping[int, Source]) -> Trace:
    """A stored row as a trace.

    Raises:
        ValueError: the row is damaged: its digest, its ids or its log-probabilities do not fit together.
    """
    _, name, problem_id, task, prompt, prefix, cut, completion, logp, text, reward, success, stop, seed, flops, by = row
    source = sources[by]
    if name != digest(problem_id, prompt, prefix, completion, *((source.run, source.step, seed) if seed else ())):
        raise ValueError("a trace's content does not match its digest")
    return Trace(
        problem_id=problem_id,
        task=task,
        prompt_ids=unpack_ids(prompt),
        prefix_ids=unpack_ids(prefix),
        cut=cut,
        completion_ids=unpack_ids(completion),
        logp_gen=unpack_floats(logp),
        text=text,
        reward=reward,
        success=bool(success),
        stop_reason=StopReason(stop),
        seed=seed,
        flops=flops,
        source=source,
    )
