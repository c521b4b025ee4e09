"""Random states of environment instances that share a process: python's ``random`` and numpy's global generator.

An environment that draws from a global generator would be disturbed by every sibling in its process. So each instance
has its own states, which are put in place before each of its calls and taken away after it.

Left out: generators that an environment creates itself without a seed (``numpy.random.default_rng()``); those nobody
can repeat. Imports neither torch nor numpy; numpy's state is kept once something else has imported numpy.
"""

from __future__ import annotations

import importlib.machinery
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class RandomState:
    """The global random states of one instance, seeded by its episode.

    **Limits**: states depend on the seed and on the instance's own draws, whatever other instances draw in between.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._python: Any = random.Random(seed).getstate()
        self._numpy: Any = None

    @contextmanager
    def active(self, *, keeps: bool = True) -> Iterator[None]:
        """Put the states in place for the block.

        Args:
            keeps: whether the block's draws count; otherwise the states are afterwards as before it.
        """
        random.setstate(self._python)
        numpy_random = sys.modules.get("numpy.random")
        watch = None if numpy_random else _SeedOnImport(self)
        if numpy_random is not None:
            self._place(numpy_random)
        try:
            yield
        finally:
            if watch is not None:
                watch.remove()
            if keeps:
                self._python = random.getstate()
                if (numpy_random := sys.modules.get("numpy.random")) is not None:
                    self._numpy = numpy_random.get_state(legacy=False)

    def _place(self, numpy_random: ModuleType) -> None:
        if self._numpy is None:
            numpy_random.seed(self._seed % 2**32)
        else:
            numpy_random.set_state(self._numpy)


class _SeedOnImport:
    """A finder that seeds numpy's global generator at the moment when a call imports numpy."""

    def __init__(self, state: RandomState) -> None:
        self._state = state
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "numpy.random":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_seed(module: ModuleType) -> None:
                execute(module)
                self._state._place(module)

            loader.exec_module = execute_and_seed
        return spec
