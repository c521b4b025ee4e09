"""The replies of a judge in a run folder, so that no question is paid for twice, and what they have cost.

Each rank appends to a file of its own and reads those of all ranks. A reply without a usable score is kept too: at
temperature 0 it would come again. Requests without any reply are not kept.

Left out: questions (``questions``) and requests (``language_model``).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heliostat.storage import append_rows, read_rows


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as far as it counts: its score, or the reason why it has none, and its tokens."""

    score: float | None
    failure: str
    prompt_tokens: int
    reply_tokens: int


@dataclass(slots=True)
class ReplyCache:
    """The replies to questions by their digest; many threads use it.

    Args:
        folder: of the files; ``None``: replies are kept in memory alone.
        rank: of this process.

    **Limits** A file whose last row was not written to its end gives all rows before.
    """

    folder: Path | None
    rank: int = 0
    known: dict[str, Reply] = field(default_factory=dict)
    _sizes: dict[Path, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        """Read the replies of all ranks that were written since the last call."""
        own = f"rank-{self.rank}.jsonl"
        for path in sorted(self.folder.glob("rank-*.jsonl")) if self.folder is not None else ():
            size = path.stat().st_size
            if self._sizes.get(path) == size or (path.name == own and path in self._sizes):
                continue
            self._sizes[path] = size
            found = {row["question"]: reply for row in read_rows(path).rows if (reply := _reply_of(row)) is not None}
            with self._lock:
                self.known |= found

    def get(self, question: str) -> Reply | None:
        """Return the reply to a question that was asked before."""
        with self._lock:
            return self.known.get(question)

    def add(self, question: str, reply: Reply) -> None:
        """Keep a reply, on the disk first.

        Raises:
            StorageError: the disk refused.
        """
        with self._lock:
            if self.folder is not None:
                self.folder.mkdir(exist_ok=True)
                row = {"question": question, **asdict(reply)}
                append_rows(self.folder / f"rank-{self.rank}.jsonl", [row], sync=False)
            self.known[question] = reply

    def tokens(self) -> tuple[int, int]:
        """Return the tokens of all prompts and of all replies so far."""
        with self._lock:
            replies = list(self.known.values())
        return sum(one.prompt_tokens for one in replies), sum(one.reply_tokens for one in replies)


def digest(parts: Sequence[Any]) -> str:
    """Return the digest of a question and everything that its reply depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _reply_of(row: Mapping[str, Any]) -> Reply | None:
    """Return the reply of a row; ``None`` for rows that this file never wrote."""
    score, failure = row.get("score"), row.get("failure")
    tokens = row.get("prompt_tokens"), row.get("reply_tokens")
    if not isinstance(row.get("question"), str) or not isinstance(failure, str):
        return None
    if not all(isinstance(count, int) for count in tokens) or not isinstance(score, float | int | None):
        return None
    return Reply(score, failure, *tokens)  # type: ignore[arg-type]
