"""The log-probabilities that a teacher's server gave, so that no sequence is sent twice, not even by a resumed run.

    rank-0.jsonl, rank-0.older.jsonl     one row a sequence: its digest, and float32 numbers in base64

A run that was killed draws the sequences of its last steps once more, so only those since the last checkpoint matter.
When a file holds that many, the older one makes room for it. The memory has the same two generations.

Left out: requests (``served_log_probs``).
"""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from heliostat.storage import append_rows, read_rows
from heliostat.storage.errors import naming
from heliostat.train.teachers.scoring_routes import Asked

_DTYPE = np.dtype("<f4")
_OLDER = ".older.jsonl"


@dataclass(slots=True)
class LogProbCache:
    """Log-probabilities by the digest of their sequence; many threads use it.

    Args:
        capacity: sequences of one generation; at least the last ``capacity`` are known.
        folder: of the files; ``None``: memory alone.
        rank: of this process, which writes files of its own and reads those of all.

    **Limits** A file whose last row was not written to its end gives all rows before.
    """

    capacity: int
    folder: Path | None = None
    rank: int = 0
    _newer: dict[str, Float[np.ndarray, " _"]] = field(default_factory=dict)
    _older: dict[str, Float[np.ndarray, " _"]] = field(default_factory=dict)
    _num_written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            rows = [known for row in read_rows(path).rows if (known := _read(row)) is not None]
            (self._older if path.name.endswith(_OLDER) else self._newer).update(rows)
            if path == self._current(self.folder):
                self._num_written = len(rows)

    def get(self, digest: str) -> Float[np.ndarray, " _"] | None:
        """Return what is known of a sequence."""
        with self._lock:
            found = self._newer.get(digest)
            return self._older.get(digest) if found is None else found

    def add(self, digest: str, values: Float[np.ndarray, " _"], *, store: bool = True) -> None:
        """Keep the log-probabilities of a sequence, on the disk first.

        Args:
            store: ``False`` for those that another process stores.

        Raises:
            StorageError: the disk refused.
        """
        with self._lock:
            if store and self.folder is not None:
                self._append(self.folder, {"sequence": digest, "log_probs": _written(values)})
            if len(self._newer) >= self.capacity:
                self._older, self._newer = self._newer, {}
            self._newer[digest] = values

    def _append(self, folder: Path, row: dict[str, str]) -> None:
        current = self._current(folder)
        with naming(current):
            folder.mkdir(exist_ok=True)
            if self._num_written >= self.capacity:
                current.replace(folder / f"rank-{self.rank}{_OLDER}")
                self._num_written = 0
        append_rows(current, [row], sync=False)
        self._num_written += 1

    def _current(self, folder: Path) -> Path:
        return folder / f"rank-{self.rank}.jsonl"


def digest_of(asked: Asked) -> str:
    """Return the digest of a sequence and the place from which it is scored."""
    ids = np.array([asked.start, *asked.ids], dtype="<i8")
    return hashlib.sha256(ids.tobytes()).hexdigest()[:32]


def _written(values: Float[np.ndarray, " _"]) -> str:
    return base64.b64encode(values.astype(_DTYPE).tobytes()).decode("ascii")


def _read(row: dict[str, object]) -> tuple[str, Float[np.ndarray, " _"]] | None:
    """Return the sequence and the numbers of a row; ``None`` for rows that this file never wrote."""
    digest, text = row.get("sequence"), row.get("log_probs")
    if not isinstance(digest, str) or not isinstance(text, str):
        return None
    try:
        return digest, np.frombuffer(base64.b64decode(text, validate=True), dtype=_DTYPE)
    except ValueError:
        return None
