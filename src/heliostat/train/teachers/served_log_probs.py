"""Log-probabilities of many sequences from one server: in batches, several at a time, and each sequence once.

    sequences --cache, equal ones together--> unknown ones --batches of similar length--> requests --> cache

Left out: the form of a request (``scoring_routes``), its retries (``rollout.server.client``), and the sharing of
sequences among ranks (``served_teacher``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from heliostat.rollout import Server, ServerError
from heliostat.rollout.completions import SamplingStopped
from heliostat.train.logprobs.teacher import TeacherCounts, TeacherFailed
from heliostat.train.teachers.log_prob_cache import LogProbCache, digest_of
from heliostat.train.teachers.scoring_routes import Asked, ScoringRoutes

MAX_SEQUENCES, MAX_TOKENS = 16, 16384
"""Of one request, at most; a longer sequence is a request of its own."""


@dataclass(slots=True)
class ServedLogProbs:
    """A server's log-probabilities of given tokens.

    Attributes:
        model: its name on the server.
        num_requests: requests at a time.

    **Limits** A sequence that the cache knows is not sent. Equal sequences are one.
    """

    server: Server
    routes: ScoringRoutes
    model: str
    cache: LogProbCache
    num_requests: int = 8
    _counts: TeacherCounts = field(default_factory=TeacherCounts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, asked: Sequence[Asked], *, again: bool = False) -> list[Float[np.ndarray, " _"]]:
        """Return the log-probabilities of every sequence's ids from its ``start`` on; what came is kept if one fails.

        Args:
            again: whether these sequences were counted by an earlier call.

        Raises:
            TeacherFailed: the server cannot be used, or gave an answer that cannot be right.
        """
        digests = [digest_of(one) for one in asked]
        found = {digest: values for digest in digests if (values := self.cache.get(digest)) is not None}
        unknown = {digest: one for digest, one in zip(digests, asked, strict=True) if digest not in found}
        batches = list(_batches(list(unknown.items()), self.num_requests))
        if batches:
            found |= self._ask(batches)
        num_tokens = sum(len(one.ids) for one in unknown.values())
        self._count(TeacherCounts(len(batches), num_tokens, 0 if again else len(asked) - len(unknown)))
        return [found[digest] for digest in digests]

    def take_counts(self) -> TeacherCounts:
        """Return the work since the last call."""
        with self._lock:
            counts, self._counts = self._counts, TeacherCounts()
        return counts

    def close(self) -> None:
        """Cancel all requests."""
        self.server.abort()

    def _ask(self, batches: Sequence[Sequence[tuple[str, Asked]]]) -> dict[str, Float[np.ndarray, " _"]]:
        pool = ThreadPoolExecutor(self.num_requests, thread_name_prefix="teacher")
        found: dict[str, Float[np.ndarray, " _"]] = {}
        try:
            futures = [pool.submit(self._ask_one, batch) for batch in batches]
            for future in futures:
                found.update(future.result())
        except (ServerError, SamplingStopped) as error:
            raise TeacherFailed(str(error) or f"the requests to teacher {self.server.url} were cancelled") from error
        except BaseException:  # the user or the disk ends the run, and no request may hold it up
            self.server.abort()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return found

    def _ask_one(self, batch: Sequence[tuple[str, Asked]]) -> dict[str, Float[np.ndarray, " _"]]:
        found = self.routes.score(self.server, self.model, [one for _, one in batch])
        by_digest = {digest: values for (digest, _), values in zip(batch, found, strict=True)}
        for digest, values in by_digest.items():
            self.cache.add(digest, values)
        return by_digest

    def _count(self, more: TeacherCounts) -> None:
        with self._lock:
            self._counts = TeacherCounts(*(old + new for old, new in zip(self._counts, more, strict=True)))


def _batches(unknown: Sequence[tuple[str, Asked]], num_requests: int) -> Iterator[list[tuple[str, Asked]]]:
    """Split sequences into requests of similar lengths, as many at least as may run at a time."""
    most = min(MAX_SEQUENCES, max(1, -(-len(unknown) // num_requests)))
    batch: list[tuple[str, Asked]] = []
    num_tokens = 0
    for digest, one in sorted(unknown, key=lambda pair: len(pair[1].ids)):
        if batch and (len(batch) == most or num_tokens + len(one.ids) > MAX_TOKENS):
            yield batch
            batch, num_tokens = [], 0
        batch.append((digest, one))
        num_tokens += len(one.ids)
    if batch:
        yield batch
