"""The trace bank: an append-only SQLite file that many processes of one machine write concurrently.

    with Bank.open(path) as bank:
        bank.append(traces)                                     one transaction: all of them or none
        bank.pick(problem_ids, num=3, tokenizer=fingerprint)    successes by problem, oldest first

The file is in WAL mode: once ``append`` returns, its traces survive a killed process. A power cut may lose the last
transactions, never a part of one. A trace that is already in the bank is not stored again, so a resumed run may log its
last steps again.

Left out: network file systems, which WAL does not work on: exchange Parquet files instead (``parquet``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self

from heliostat.arguments import PathArg, as_path, texts
from heliostat.traces.blobs import digest, pack_floats, pack_ids, pack_turns, unpack_floats, unpack_ids, unpack_turns
from heliostat.traces.database import BUSY_S, BankError, Database
from heliostat.traces.record import Trace, TraceSource
from heliostat.traces.row_issues import RowIssues
from heliostat.traces.schema import ADD_CHECKSUM, SELECT_TRACES
from heliostat.types import StopReason


@dataclass(frozen=True, slots=True)
class Attempts:
    """One round of rejection sampling on one problem: the numbers of attempts and successes.

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
    """The result of one ``append``: the numbers of stored traces and of skipped duplicates."""

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

    def __init__(self, path: PathArg, create: bool = True) -> None:
        self.path = as_path(path)
        if not create and not self.path.is_file():
            raise FileNotFoundError(2, "there is no trace bank", str(self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = Database(self.path, BUSY_S)
        self._contexts: dict[tuple[object, ...], tuple[int, int]] = {}
        self._sources: dict[TraceSource, int] = {}

    @classmethod
    def open(cls, path: PathArg, create: bool = True) -> Bank:
        """Open the bank at ``path``."""
        return cls(path, create)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __len__(self) -> int:
        """Return the number of traces in the bank."""
        return int(self.query("SELECT count(*) FROM traces")[0][0])

    # -- writing ----------------------------------------------------------------------------------------------------

    def append(self, traces: Iterable[Trace], attempts: Iterable[Attempts] = ()) -> Appended:
        """Store traces, and the rounds of attempts they came from, in one transaction.

        Raises:
            BankError: the disk is full, the file is locked for too long, damaged or gone; nothing was stored.
        """
        try:
            with self._db.transaction():
                rows = [self._row(trace) for trace in traces]
                stored = self._db.executemany(
                    "INSERT OR IGNORE INTO traces VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
                )
                num_new = max(0, stored.rowcount)
                for one in map(astuple, attempts):
                    self._db.execute("INSERT OR IGNORE INTO attempts VALUES (NULL, ?, ?, ?, ?, ?, ?)", one)
                    self._db.execute(ADD_CHECKSUM, (digest(*one), *one[:3]))
        except BaseException:
            self._contexts.clear()  # they may name rows that were rolled back
            self._sources.clear()
            raise
        return Appended(num_new, len(rows) - num_new)

    def _row(self, trace: Trace) -> tuple[object, ...]:
        context, problem = self._context(trace)
        completion = pack_ids(trace.completion_ids)
        # With a random stream of its own a completion is an event, and equal events both count; without, it is content.
        event = (trace.source.run, trace.source.step, trace.seed) if trace.seed else ()
        name = digest(trace.problem_id, pack_ids(trace.prompt_ids), pack_ids(trace.prefix_ids), completion, *event)
        return (
            name,
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
            checksum(name, trace),
            pack_turns(trace.turns),
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

    def _source(self, source: TraceSource) -> int:
        if source not in self._sources:
            values = [int(value) if isinstance(value, bool) else value for value in astuple(source)]
            name = digest(*(astuple(source) if source.environment else astuple(source)[:-1]))  # as in earlier formats
            self._sources[source] = self._shared("sources", "digest", name, (name, *values))
        return self._sources[source]

    def _shared(self, table: str, key: str, value: object, row: Sequence[object]) -> int:
        """Return the id of a row that many traces share; it is written on first use."""
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (NULL, {marks})", row)
        return int(self._db.execute(f"SELECT id FROM {table} WHERE {key} = ?", (value,)).fetchone()[0])

    # -- reading ----------------------------------------------------------------------------------------------------

    def pick(
        self,
        problem_ids: Iterable[str],
        num: int,
        *,
        tokenizer: str,
        environment: str = "",
        successes_only: bool = True,
        issues: RowIssues | None = None,
    ) -> dict[str, list[Trace]]:
        """Return the oldest ``num`` traces of each problem in one tokenizer's ids; problems without any are omitted.

        Args:
            tokenizer: fingerprint of the tokenizer that the ids must belong to.
            environment: name of the environment that they came from; empty: none.
            successes_only: leave failures out.
            issues: takes damaged traces, which are passed over.

        Raises:
            BankError: a trace is damaged, and there are no ``issues`` to tell.
        """
        where = "WHERE t.problem = (SELECT id FROM problems WHERE name = ?1) AND coalesce(c.tokenizer, ?2) = ?2" + (
            " AND t.success = 1" if successes_only else ""
        )
        sources = self.sources()
        found: dict[str, list[Trace]] = {}
        for problem_id in dict.fromkeys(texts(problem_ids, "problem_ids")):
            whole = self._whole(self.rows(where, (problem_id, tokenizer)), sources, issues)
            own = (
                trace for trace in whole if trace.problem_id == problem_id and trace.source.environment == environment
            )
            traces = list(islice(own, num))
            if traces:
                found[problem_id] = traces
        return found

    def _whole(
        self, rows: Iterable[tuple[Any, ...]], sources: Mapping[int, TraceSource], issues: RowIssues | None
    ) -> Iterator[Trace]:
        for row in rows:
            try:
                yield to_trace(row, sources)
            except ValueError as error:
                if issues is None:
                    raise BankError(f"trace bank {self.path}, row {row[0]}: {error}") from error
                issues.report(f"trace bank {self.path}, row {row[0]}", str(error))

    def rows(self, where: str = "", values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield stored rows in the order of writing, a few at a time; ``to_trace`` converts them to traces.

        Raises:
            BankError: they cannot be read.
        """
        unchecked = self._unchecked("traces")
        with self._db.speaking():
            cursor = self._db.execute(self._select() + where + " ORDER BY t.id", values)
            while rows := cursor.fetchmany(1000):
                for row in rows:
                    yield (*row, row[0] <= unchecked)

    def _select(self) -> str:
        return SELECT_TRACES.format(
            checksum="t.checksum" if self._db.format >= 2 else "NULL", turns="t.turns" if self._db.format >= 3 else "''"
        )

    def _unchecked(self, table: str) -> float:
        """Return the last row of a table that an earlier version wrote, without a checksum."""
        if self._db.format < 2:
            return math.inf
        marks = self.query("SELECT value FROM marks WHERE name = ?", (f"unchecked {table}",))
        return float(marks[0][0]) if marks else 0.0

    def __iter__(self) -> Iterator[Trace]:
        """Yield every trace in the order of writing, in bounded memory.

        Raises:
            BankError: a trace is damaged; the message names its row.
        """
        return self._whole(self.rows(), self.sources(), None)

    def sources(self) -> Mapping[int, TraceSource]:
        """Map the numbers that traces refer to to their sources, each read on first use."""
        return _Sources(self)

    def attempts(self, campaign: str | None = None) -> list[Attempts]:
        """Return the rounds of one campaign of rejection sampling, or of all, in order of writing.

        Raises:
            BankError: one is damaged; the message names its row.
        """
        where, values = ("", ()) if campaign is None else (" WHERE campaign = ?", (campaign,))
        unchecked = self._unchecked("attempts")
        found = []
        checksums = dict(self.query("SELECT * FROM attempt_checksums")) if self._db.format >= 2 else {}
        for row in self.query(f"SELECT * FROM attempts{where} ORDER BY id", values):
            attempts, written = Attempts(*row[1:]), checksums.get(row[0])
            if not (written is None and row[0] <= unchecked) and written != digest(*astuple(attempts)):
                raise BankError(f"trace bank {self.path}: row {row[0]} of its attempts is damaged")
            found.append(attempts)
        return found

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a read-only query on the tables of ``schema``.

        Raises:
            BankError: they cannot be read.
        """
        return self._db.query(sql, values)


class _Sources(dict[int, TraceSource]):
    """The rows of the table of sources, each read on first use."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self._bank = bank

    def __missing__(self, key: int) -> TraceSource:
        rows = self._bank.query("SELECT * FROM sources WHERE id = ?", (key,))
        if not rows:
            raise ValueError(f"its source, number {key}, is missing")
        try:
            self[key] = source = _to_source(rows[0][2:])
        except (ValueError, TypeError) as error:
            raise ValueError(f"its source, number {key}, is damaged ({error})") from None
        return source


def _to_source(values: Sequence[Any]) -> TraceSource:
    tokenizer, policy, run, step, temperature, max_new_tokens, verifier, reencoded, *environment = values
    temperature = float("nan") if temperature is None else temperature
    return TraceSource(
        tokenizer, policy, run, step, temperature, max_new_tokens, verifier, bool(reencoded), *environment
    )


def to_trace(row: Sequence[Any], sources: Mapping[int, TraceSource]) -> Trace:
    """Convert a stored row to a trace.

    Raises:
        ValueError: the row is damaged: it does not fit its digest or its checksum, or holds values of other types.
    """
    try:
        _, name, problem_id, _, tokenizer, prompt, prefix, _, completion, *_, by, written, unchecked = row
        trace = _unpacked(row, sources[by])
        event = (trace.source.run, trace.source.step, trace.seed) if trace.seed else ()
        matches = name == digest(problem_id, prompt, prefix, completion, *event)
        matches = matches and tokenizer == trace.source.tokenizer
    except (TypeError, KeyError, AttributeError, OverflowError) as error:  # SQLite columns hold any type
        raise ValueError(f"damaged ({error})") from error
    if not matches:
        raise ValueError("a trace's content does not match its digest")
    if not (written is None and unchecked) and written != checksum(name, trace):
        raise ValueError("a trace's log-probabilities, text, reward or circumstances do not match its checksum")
    return trace


def checksum(name: bytes, trace: Trace) -> bytes:
    """Checksum the parts of a trace that its digest ``name``, which identifies duplicates, does not cover."""
    source = trace.source
    # Nothing without an environment, so that checksums of single turns are those of earlier formats.
    in_environment = (pack_turns(trace.turns), source.environment) if trace.turns or source.environment else ()
    return digest(
        name,
        pack_floats(trace.logp_gen),
        trace.text,
        float(trace.reward) + 0.0,  # the sign of a zero is not stored
        bool(trace.success),
        str(trace.stop_reason),
        float(trace.flops) + 0.0,
        trace.task,
        trace.cut,
        trace.seed,
        *(source.tokenizer, source.policy, source.run, source.step, float(source.temperature) + 0.0),
        *(source.max_new_tokens, source.verifier, bool(source.reencoded)),
        *in_environment,
    )


def _unpacked(row: Sequence[Any], source: TraceSource) -> Trace:
    problem_id, task, _, prompt, prefix, cut, completion, logp, text, reward, success, stop, seed, flops, turns = row[
        2:17
    ]
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
        turns=unpack_turns(turns),
        source=source,
    )
