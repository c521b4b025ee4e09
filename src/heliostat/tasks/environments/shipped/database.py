"""Questions that a query of an SQLite database answers.

Each episode writes a fresh file, and its queries run on a read-only connection of the real ``sqlite3``.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from heliostat.tasks.environments.shipped.question import BadCall, Question, QuestionEnvironment

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jana", "Kim", "Leo", "Mia", "Nils", "Ole")
CITIES = ("Bern", "Lima", "Oslo", "Rome")
MAX_OBSERVATION = 200
"""Characters of an observation."""

_MAX_STEPS = 200_000  # of SQLite's virtual machine: an endless query ends as an error that the model reads
_MAX_BYTES = 10_000  # of one value
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
# neither random() nor the clock: the same queries must see the same results when an episode is replayed
_FUNCTIONS = frozenset(
    {"abs", "avg", "coalesce", "count", "group_concat", "ifnull", "instr", "length", "like", "lower", "max", "min"}
    | {"nullif", "replace", "round", "substr", "sum", "total", "trim", "upper"}
)


class Database(QuestionEnvironment):
    """A turn is one ``SELECT``; ``say VALUE`` ends the episode.

    The table ``t`` has the columns ``name``, ``age``, ``pay`` and ``city``. Questions ask for a cell, a count, a
    maximum or a sum. Rows are drawn anew in every episode, so no question is answerable without a query.

    Args:
        num_rows: of the table, 2 to 15.
        kinds: of questions, among ``cell``, ``count``, ``max`` and ``sum``.
        blind: answer queries from a table of the same names whose other columns are drawn again: a control, in which
            no policy can succeed more often than a guess.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: ``num_rows`` is out of range, or a kind is unknown.
    """

    manual: ClassVar[str] = (
        "The table t has the columns name, age, pay and city. Write one SQL query. Finish with 'say VALUE'."
    )

    def __init__(
        self,
        num_rows: int = 8,
        kinds: tuple[str, ...] = ("cell", "count", "max", "sum"),
        blind: bool = False,
        explain: bool = False,
    ) -> None:
        super().__init__(explain)
        if not 2 <= num_rows <= len(NAMES):
            raise ValueError(f"num_rows = {num_rows}: must be from 2 to {len(NAMES)}")
        if not kinds or not set(kinds) <= _QUESTIONS.keys():
            raise ValueError(f"kinds = {list(kinds)}: must be among {', '.join(_QUESTIONS)}")
        self._num_rows = num_rows
        self._kinds = tuple(kinds)
        self._blind = blind
        self._rows: _Rows = []
        self._asked: _Rows = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._connection: sqlite3.Connection | None = None

    def make_question(self, seed: int) -> Question:
        draw = random.Random(f"database {seed}")
        names = draw.sample(NAMES, self._num_rows)
        self._rows = self._asked = _drawn(draw, names)
        prompt, query = _QUESTIONS[draw.choice(self._kinds)](draw, self._rows)
        with sqlite3.connect(":memory:") as connection:
            _fill(connection, self._rows)
            (answer,) = connection.execute(query).fetchone()
        connection.close()
        if self._blind:
            self._rows = _drawn(draw, names)
        return Question(prompt, str(answer), (query,))

    def problem(self, seed: int) -> dict[str, Any]:
        """Return the row of a problem, with the table in its column ``table``, which no prompt shows."""
        row = super().problem(seed)
        return {**row, "table": [list(cells) for cells in self._asked]}

    def reset(self, problem: Mapping[str, Any], seed: int) -> None:
        """Write the episode's file and open it for reading."""
        self.close()
        super().reset(problem, seed)
        self._folder = tempfile.TemporaryDirectory(prefix="heliostat-database-")
        path = Path(self._folder.name, "episode.sqlite")
        writing = sqlite3.connect(path)
        writing.execute("PRAGMA synchronous = OFF")  # the file does not outlive its episode
        _fill(writing, self._rows)
        writing.commit()
        writing.close()
        self._connection = _open_to_read(path)

    def call(self, action: str) -> str:
        if self._connection is None:
            raise RuntimeError("no episode has begun: call reset first")
        try:
            rows = self._connection.execute(action).fetchmany(20)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise BadCall(f"error: {error}"[:MAX_OBSERVATION]) from error
        return "\n".join(", ".join(map(str, row)) for row in rows)[:MAX_OBSERVATION] or "no rows"

    def close(self) -> None:
        """Close and delete the episode's file."""
        if self._connection is not None:
            self._connection.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._connection = self._folder = None


def _fill(connection: sqlite3.Connection, rows: list[tuple[str, int, int, str]]) -> None:
    connection.execute("CREATE TABLE t (name TEXT, age INTEGER, pay INTEGER, city TEXT)")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Open a file so that a query can neither write, nor reach another file, nor run without end."""
    # a statement that was cached would count its steps over all its runs
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, cached_statements=0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)

    def authorize(action: int, _: object, name: object, *__: object) -> int:
        is_known = action == sqlite3.SQLITE_FUNCTION and name in _FUNCTIONS
        return sqlite3.SQLITE_OK if is_known or action in _ALLOWED else sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: 1, _MAX_STEPS)
    return connection


_Rows = list[tuple[str, int, int, str]]


def _drawn(draw: random.Random, names: list[str]) -> _Rows:
    return [(name, draw.randint(18, 80), draw.randint(20, 99), draw.choice(CITIES)) for name in names]


def _cell(draw: random.Random, rows: _Rows) -> tuple[str, str]:
    name, column = draw.choice(rows)[0], draw.choice(("age", "pay", "city"))
    return f"{column} of {name}", f"select {column} from t where name='{name}'"


def _count(draw: random.Random, rows: _Rows) -> tuple[str, str]:
    city = draw.choice(rows)[3]
    return f"how many in {city}", f"select count(*) from t where city='{city}'"


def _max(draw: random.Random, rows: _Rows) -> tuple[str, str]:
    city, column = draw.choice(rows)[3], draw.choice(("age", "pay"))
    return f"max {column} in {city}", f"select max({column}) from t where city='{city}'"


def _sum(draw: random.Random, rows: _Rows) -> tuple[str, str]:
    city, column = draw.choice(rows)[3], draw.choice(("age", "pay"))
    return f"total {column} in {city}", f"select sum({column}) from t where city='{city}'"


_QUESTIONS = {"cell": _cell, "count": _count, "max": _max, "sum": _sum}
