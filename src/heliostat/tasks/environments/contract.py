"""The contract of an environment: it answers each turn of a model, and says when the episode is over.

    observation = environment.reset(problem, seed)        the first observation, part of the prompt
    step = environment.step(action)                       once per turn of the model, with the text of the turn
    environment.close()

One instance serves one episode at a time, in a limited process of its own pool (``pool``). All members of a group get
the same problem and the same seed, so they must see the same first observation.

Left out: how turns become token ids (``models.prompts.turn_format``). Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Observation = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages with ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Step:
    """The answer of an environment to one turn.

    Attributes:
        observation: the text or messages that the model reads next.
        reward: the reward of this turn; ``None``: this turn has none. The episode's return is the sum over its turns.
            An episode whose turns all have none is judged by the task's verifiers.
        done: whether the episode is over; the observation is then not read.
        info: further facts. Known keys: ``success`` (bool, of the whole episode; default: its return is at least 1),
            ``calls`` (tool calls in this turn), ``errors`` (calls among them that were refused or failed), ``invalid``
            (bool: the action could not be understood).
    """

    observation: Observation = ""
    reward: float | None = None
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class Environment:
    """The base class of environments. Deriving from it is optional: ``reset`` and ``step`` are enough.

    A class may also have:

    - ``problem(seed)``, a method that returns a problem's row (``prompt``, ``answer``, other columns) for the
      task source ``environment``;
    - ``oracle()``, a method that returns a right next action of the current episode, for demonstrations and audits;
    - ``tools()``, a method that returns JSON schemas of its tools, for chat templates that list tools.
    """

    def reset(self, problem: Mapping[str, Any], seed: int) -> Observation | None:
        """Begin an episode.

        Args:
            problem: the data row: ``prompt``, ``answer``, and all other columns.
            seed: a function of the problem; the world must depend on nothing else.

        Returns:
            The first observation, appended to the problem's prompt; ``None`` or empty: the prompt alone.
        """
        raise NotImplementedError

    def step(self, action: str) -> Step:
        """Answer one turn of the model.

        A bad action is an observation that says so, never an exception: an exception means that the environment itself
        has failed, and its episode is not scored.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release what the episode holds."""


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """A description of an environment that a fresh process can build it from.

    Attributes:
        name: ``module:Name`` of a class or factory, or a shipped environment's name; empty: tools alone.
        tools: ``module:function`` of plain typed functions that the model may call.
        settings: keyword arguments of the class.
        import_from: folder that modules are imported from, besides the working directory.
        content: classes and functions that cannot be imported by name (scripts, notebooks), pickled with their names
            by ``building.describe``; empty otherwise.
        timeout_s: wall-clock limit of one call, in seconds.
        memory_mb: memory of one process above its size after loading, in MiB.
        num_workers: processes.
    """

    name: str = ""
    tools: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    import_from: str = ""
    content: bytes = b""
    timeout_s: float = 10.0
    memory_mb: int = 1024
    num_workers: int = 4


class EnvironmentFailed(RuntimeError):
    """An environment failed, not the model: the episode is not scored. The message names the environment and why."""
