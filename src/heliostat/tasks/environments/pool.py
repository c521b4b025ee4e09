"""Run many episodes of one environment in a few limited processes.

    with EnvironmentPool(spec) as pool:
        episode = pool.open(row, seed)
        episode.first.result()                # the first observation
        episode.step("look").result()         # a Step
        episode.close()

No call blocks: results and failures come through futures. An instance stays in one process, a process serves many
instances and makes one call at a time.

Left out: retries and replays (``keeper``), and how turns become token ids (``models.prompts.turn_format``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Self

from heliostat.nested_runs import refuse_nested
from heliostat.tasks.environments.contract import EnvironmentSpec, Observation, Step
from heliostat.tasks.environments.keeper import Call, History, Keeper, NoOracle, PoolClosed, PoolCounts
from heliostat.tasks.environments.messages import (
    Reader,
    read_nothing,
    read_observation,
    read_oracle,
    read_schemas,
    read_step,
)
from heliostat.tasks.environments.process import EnvironmentNotLoaded
from heliostat.tasks.sandbox.reported import excerpt

__all__ = ["EnvironmentNotLoaded", "EnvironmentPool", "Episode", "NoOracle", "PoolClosed", "PoolCounts"]


class Episode:
    """One episode of an environment.

    Attributes:
        first: the first observation.

    Every future may also raise ``EnvironmentNotLoaded`` (no episode of this environment can run) and ``PoolClosed``.
    """

    def __init__(self, keeper: Keeper, history: History) -> None:
        self.keeper = keeper
        self._history = history
        self.first: Future[Observation] = self._put("reset", (history.row, history.seed), read_observation)

    def step(self, action: str) -> Future[Step]:
        """Send the text of a turn. Steps of an episode are answered in the order in which they were sent.

        Raises (through the future):
            EnvironmentFailed: the environment failed in this call or an earlier one, twice.
            RuntimeError: the environment has already ended the episode.
        """
        return self._put("step", (action,), read_step)

    def oracle(self) -> Future[str]:
        """Ask for a right next action, without changing the episode.

        Raises (through the future):
            EnvironmentFailed: the environment failed; ``NoOracle``: it has no ``oracle()``.
        """
        return self._put("oracle", (), read_oracle)

    def tools(self) -> Future[tuple[Mapping[str, Any], ...]]:
        """Ask for the JSON schemas of the environment's tools; empty if it has none.

        Raises (through the future):
            EnvironmentFailed: the environment failed.
        """
        return self._put("tools", (), read_schemas)

    def close(self) -> None:
        """End the episode; calls that still wait are cancelled. A second call has no effect."""
        if not self._history.is_closed:
            self._history.is_closed = True
            self._put("close", (), read_nothing)

    def _put(self, kind: str, arguments: tuple[Any, ...], read: Reader) -> Future[Any]:
        if self._history.is_closed and kind != "close":
            raise RuntimeError("this episode was closed")
        call = Call(self._history, kind, arguments, read)
        self.keeper.put(call)
        return call.future


class EnvironmentPool:
    """A pool of processes that run episodes under the time and memory limits of their environment.

    Use it as a context manager: processes start on entering, in the background, and have ended after leaving.

    Args:
        spec: the environment; also an attribute.
        isolates_random: whether each instance has random states of its own; an audit turns it off to find environments
            that depend on it.

    Raises:
        NestedRun: on entering, inside a worker process.

    **Limits**: an episode depends only on its row, its seed and its actions, not on the number of processes or on other
    episodes, as long as the environment itself is a function of them and of the global random states.
    """

    def __init__(self, spec: EnvironmentSpec, *, isolates_random: bool = True) -> None:
        self.spec = spec
        self._isolates_random = isolates_random
        self.keepers: list[Keeper] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        refuse_nested("environment processes")
        self.keepers = [Keeper(self.spec, isolates_random=self._isolates_random) for _ in range(self.spec.num_workers)]
        for keeper in self.keepers:
            keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        for keeper in self.keepers:
            keeper.begin_stop()
        for keeper in self.keepers:
            keeper.stop()

    @property
    def counts(self) -> PoolCounts:
        """Counts of the calls of all processes so far."""
        return sum((keeper.counts for keeper in self.keepers), PoolCounts())

    def open(self, row: Mapping[str, Any], seed: int, name: str = "") -> Episode:
        """Begin an episode.

        Args:
            row: the data row: ``prompt``, ``answer``, and all other columns.
            seed: decides the world, together with the row.
            name: the problem's name in messages; by default an excerpt of its prompt.

        Raises:
            RuntimeError: outside the ``with`` block.
        """
        if not self.keepers:
            raise RuntimeError("an EnvironmentPool opens episodes only inside its `with` block")
        number = next(self._numbers)
        keeper = self.keepers[number % len(self.keepers)]
        return Episode(keeper, History(number, row, seed, name or f"problem {excerpt(_question(row))}"))


def _question(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt", "")
    return str(prompt[-1].get("content", "")) if isinstance(prompt, list | tuple) and prompt else str(prompt)
