"""Open the bank's file, check it, migrate it to the current format, and translate SQLite's errors.

Left out: the tables (``schema``), and writing and reading them (``bank``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from heliostat.traces.schema import APPLICATION_ID, FORMAT, FORMAT_1, UPGRADES

BUSY_S = 60.0
"""How long a writer waits for another one's transaction, in seconds."""


class BankError(ValueError):
    """A file is no trace bank, is damaged, or cannot be written; the message says which and how to proceed."""


class Database:
    """A connection to a bank's file.

    Raises:
        BankError: the file is something else, of another format, damaged, or cannot be opened.
    """

    def __init__(self, path: Path, busy_s: float) -> None:
        self.path = path
        self.busy_s = busy_s
        if path.exists() and not path.is_file():
            raise BankError(f"{path} is not a file; a trace bank needs a path of its own")
        with self.speaking():
            self._db = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
        try:
            self._prepare()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for SQLite's own messages
            self.close()
            if _is_refusal(error):
                raise self.spoken(error) from error
            raise BankError(
                f"{path} cannot be opened as a trace bank ({error}); if it once was one, restore it from an "
                "export (heliostat traces import), else choose another path"
            ) from error
        except BankError:
            self.close()
            raise
        self._identity = _identity(path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement; errors are SQLite's own."""
        return self._db.execute(sql, values)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        """Run one statement for each of many rows; errors are SQLite's own."""
        return self._db.executemany(sql, rows)

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a read-only statement.

        Raises:
            BankError: they cannot be read.
        """
        with self.speaking():
            return self._db.execute(sql, values).fetchall()

    @property
    def format(self) -> int:
        """The file's format, which another process may have raised since it was opened."""
        return self._pragma("user_version")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction, after migrating the file to the current format.

        Raises:
            BankError: the disk is full, the file is locked, damaged or gone.
        """
        with self.speaking():
            self._check_is_there()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for statement in _upgrade(self.format, FORMAT):
                    self._db.execute(statement)
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise
            self._check_is_there()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Convert SQLite's errors inside the block to ``BankError``."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.spoken(error) from error

    def spoken(self, error: Exception) -> BankError:
        """Describe SQLite's error, with a way to proceed."""
        said = str(error)
        for sign, sentence in SENTENCES.items():
            if sign in said:
                return BankError(f"trace bank {self.path}: {sentence.format(busy_s=self.busy_s)} ({said})")
        return BankError(f"trace bank {self.path} is damaged ({said}); heliostat traces verify says where")

    def _check_is_there(self) -> None:
        if _identity(self.path) != self._identity:
            raise BankError(
                f"trace bank {self.path} was removed or replaced while it was in use, and what was stored since is "
                "lost; the same command continues with a new one"
            )

    def _prepare(self) -> None:
        """Create the tables of a new file, or check that this is a bank."""
        if self._is_empty():
            self._configure()
            self._db.execute("BEGIN IMMEDIATE")  # two processes may create the same bank at once
            if self._is_empty():
                _make_tables(self._db, FORMAT)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute("COMMIT")
        if self._pragma("application_id") != APPLICATION_ID:  # nothing of that file has been touched
            raise BankError(f"{self.path} is an SQLite file of another program, not a trace bank; choose another path")
        if not 1 <= self.format <= FORMAT:
            raise BankError(
                f"{self.path} has bank format {self.format}, but this version of heliostat reads 1 to {FORMAT}; update "
                "heliostat, or restore the file if it is damaged"
            )
        if not _tables(self._expected()) <= _tables(self._db):
            raise BankError(
                f"{self.path} is a damaged trace bank: its tables are not what was made; restore it from an export "
                "(heliostat traces import)"
            )
        self._configure()

    def _expected(self) -> sqlite3.Connection:
        """Return an empty bank of the file's format."""
        expected = sqlite3.connect(":memory:", isolation_level=None)
        _make_tables(expected, self.format)
        return expected

    def _is_empty(self) -> bool:
        num_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        return num_tables == 0 and self._pragma("application_id") == 0

    def _configure(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])


SENTENCES = {
    "is full": "the disk is full, and nothing of the last step was stored; free some space and run the same command",
    "locked": "another process has been writing it for more than {busy_s:g} s; wait for it and run the same command",
    "readonly": "it cannot be written; check the modes of the file and of its folder",
    "unable to open": "it cannot be opened; check that its folder exists and can be written",
    "I/O error": "the disk failed, or the file was removed; nothing of the last step was stored",
}
"""Ways to proceed, by a part of SQLite's message."""


def _make_tables(db: sqlite3.Connection, format: int) -> None:
    for statement in (*FORMAT_1.split(";\n"), *_upgrade(1, format)):
        db.execute(statement)


def _upgrade(old: int, new: int) -> Iterator[str]:
    """Yield the statements that bring a file from one format to a later one."""
    for format in range(old, new):
        yield from UPGRADES[format]


def _tables(db: sqlite3.Connection) -> set[tuple[Any, ...]]:
    """Return tables and indexes as they were declared."""
    return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type IN ('table', 'index')"))


def _is_refusal(error: Exception) -> bool:
    return any(sign in str(error) for sign in SENTENCES)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
