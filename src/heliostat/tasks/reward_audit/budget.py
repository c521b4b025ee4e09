"""Judge texts within a time budget: fast verifiers get all of them at once, slow ones a few at a time.

Left out: choosing texts (``probes``, ``oracles``), and interpreting verdicts (``audit``).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from heliostat.tasks.verifier_pool.pool import VerifierPool
from heliostat.types import Problem, Verdict

_WINDOW_S = 0.5  # texts are submitted for about this long at a time, so that few are pending when the budget ends
_GROWTH = 8


@dataclass
class JudgingBudget:
    """A time budget for verdicts that starts with the first verdict, so that a worker's start does not count.

    Attributes:
        budget_s: seconds; texts not judged by then are omitted.
        num_left: texts that were left out so far.
    """

    pool: VerifierPool
    budget_s: float = math.inf
    num_left: int = 0
    _deadline: float = field(default=math.inf, init=False)
    _rate_s: float | None = field(default=None, init=False)

    def judge(self, asked: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judge ``asked`` in order, as far as the time budget allows. Failures never stop.

        Raises:
            VerifierError: no worker can be started.
        """
        judged: list[Verdict] = []
        size = self._first_size(len(asked))
        while len(judged) < len(asked) and time.monotonic() < self._deadline:
            window = asked[len(judged) : len(judged) + size]
            began = time.monotonic()
            try:
                judged += self._judged(window)
            except TimeoutError:
                break
            if self._deadline == math.inf:
                self._deadline = time.monotonic() + self.budget_s
            self._rate_s = (time.monotonic() - began) / len(window)
            size = max(1, min(_GROWTH * size, int(_WINDOW_S / max(self._rate_s, 1e-9))))
        self.num_left += len(asked) - len(judged)
        return judged

    def _first_size(self, num: int) -> int:
        if self.budget_s == math.inf:
            return num
        known = 1 if self._rate_s is None else int(_WINDOW_S / max(self._rate_s, 1e-9))
        return max(self.pool.num_workers, known)

    def _judged(self, window: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judge all of it.

        Raises:
            TimeoutError: time was up before.
        """
        groups = itertools.groupby(window, key=lambda one: one[0].problem_id)
        futures = []
        for _, group in groups:
            texts = list(group)
            futures.append(self.pool.judge(texts[0][0], [text for _, text in texts], stops=False))
        verdicts: list[Verdict] = []
        for future in futures:
            left = self._deadline - time.monotonic()
            verdicts += future.result(None if left == math.inf else max(0.0, left))
        return verdicts
