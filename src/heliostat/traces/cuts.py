"""Cut policies: choose the share of a stored turn to use as a problem's prefix at a step.

    band           lengths drawn once from a band of the turn, several per problem (PrefixRL)
    annealed       a share of the turn that goes from ``start`` to ``end`` over ``num_steps``
    targeted       per problem, the share at which the policy succeeds at rate ``target``, found by small corrections
    backtracking   per problem, back by ``stride`` each time the policy succeeds at rate ``target``

A policy gives shares of the turn, or of a trajectory of several turns; ``cut_prefix_source`` turns shares into tokens
that may be given away. Draws depend only on the seed and the problem, and learned values are stored in checkpoints, so
a resumed run uses the same cuts.

Left out: choosing the prompts of a step (``train.data.prefixes``).

References: PrefixRL, 2026, arXiv 2601.18795, for the band (reconstruction: the paper's body was not available).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from heliostat.config import ConfigError, nearest
from heliostat.config.keys import build_checked
from heliostat.traces.blobs import digest
from heliostat.types import Turn


@dataclass(frozen=True, slots=True)
class PrefixSource:
    """A stored turn or trajectory as far as it may be given away.

    Attributes:
        ids: the turn's first tokens; later ones would reveal the answer and are not kept. Of a trajectory, the tokens
            up to the end of the last reply that may be given.
        num_tokens: tokens of the whole turn or trajectory, its end token aside.
        prompt_ids: of a trajectory, the prompt that it followed.
        turns: of a trajectory, the turns within ``ids``, each followed by the environment's reply.
    """

    problem_id: str
    ids: tuple[int, ...]
    num_tokens: int
    prompt_ids: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def reply_ends(self) -> tuple[int, ...]:
        """The lengths at which a trajectory may be cut: the ends of the environment's replies."""
        return (*(turn.start for turn in self.turns[1:]), len(self.ids))


class CutPolicy(Protocol):
    """A policy that gives shares of a turn by problem and step."""

    @property
    def per_problem(self) -> int:
        """Number of cuts of each problem."""
        ...

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        """Return the share of the turn that cut ``index`` of a problem uses at a step."""
        ...

    def update(self, problem_id: str, success: float) -> None:
        """Record the success rate of a group that continued a prefix of the problem."""
        ...

    def state_dict(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the state from a checkpoint."""
        ...


@dataclass(slots=True)
class Band:
    """Shares drawn once, uniformly from a band.

    Attributes:
        low, high: ends of the band, as shares of the turn's tokens.
        per_problem: cuts of each problem.
    """

    name: ClassVar[str] = "band"
    low: float = 0.4
    high: float = 0.8
    per_problem: int = 3

    def __post_init__(self) -> None:
        _require_shares(low=self.low, high=self.high)
        if self.low > self.high or self.per_problem < 1:
            raise ValueError(
                f"needs low <= high and per_problem >= 1, got {self.low:g}, {self.high:g}, {self.per_problem}"
            )

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        return self.low + (self.high - self.low) * uniform(seed, problem_id, index)

    def update(self, problem_id: str, success: float) -> None: ...

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None: ...


@dataclass(slots=True)
class Annealed:
    """One share for all problems, which moves linearly from ``start`` to ``end`` and stays there.

    Limits:
        ``end = 0``: from step ``num_steps`` on, problems come without a prefix.
    """

    name: ClassVar[str] = "annealed"
    start: float = 0.9
    end: float = 0.0
    num_steps: int = 100
    per_problem: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_shares(start=self.start, end=self.end)
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.num_steps)

    def update(self, problem_id: str, success: float) -> None: ...

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None: ...


@dataclass(slots=True)
class Targeted:
    """Each problem's own share, moved after every group by ``gain (target - success)``.

    Limits:
        A success rate of exactly ``target`` leaves the share where it is.
    """

    name: ClassVar[str] = "targeted"
    target: float = 0.5
    gain: float = 0.2
    start: float = 0.6
    shares: dict[str, float] = field(default_factory=dict, init=False)
    per_problem: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_shares(target=self.target, start=self.start)
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain must lie above 0 and up to 1, got {self.gain:g}")

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        return self.shares.get(problem_id, self.start)

    def update(self, problem_id: str, success: float) -> None:
        moved = self.shares.get(problem_id, self.start) + self.gain * (self.target - success)
        self.shares[problem_id] = min(1.0, max(0.0, moved))

    def state_dict(self) -> dict[str, float]:
        return dict(self.shares)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.shares = dict(state)


@dataclass(slots=True)
class Backtracking:
    """Each problem starts near its solution and steps back from it as soon as it is solved from there."""

    name: ClassVar[str] = "backtracking"
    start: float = 0.9
    stride: float = 0.1
    target: float = 0.5
    shares: dict[str, float] = field(default_factory=dict, init=False)
    per_problem: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_shares(start=self.start, target=self.target)
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride must lie above 0 and up to 1, got {self.stride:g}")

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        return self.shares.get(problem_id, self.start)

    def update(self, problem_id: str, success: float) -> None:
        if success >= self.target:
            self.shares[problem_id] = max(0.0, self.shares.get(problem_id, self.start) - self.stride)

    def state_dict(self) -> dict[str, float]:
        return dict(self.shares)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.shares = dict(state)


POLICIES: dict[str, type[Band] | type[Annealed] | type[Targeted] | type[Backtracking]] = {
    policy.name: policy for policy in (Band, Annealed, Targeted, Backtracking)
}


def build_cut_policy(name: str, settings: Mapping[str, object]) -> CutPolicy:
    """Build the policy of that name with its settings.

    Raises:
        ConfigError: no such policy, or a setting it does not take.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"unknown prefix.name '{name}'{nearest(name, POLICIES)}; there are: none, {', '.join(POLICIES)}"
        )
    return build_checked(POLICIES[name], settings, "prefix")


def cut_prefix_source(
    prefix_source: PrefixSource, share: float, boundaries: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return the first ``share`` of a turn's tokens, shortened so that it does not reveal the answer.

    Args:
        boundaries: lengths at which the turn may be cut; the nearest one counts. ``None``: anywhere.

    Returns:
        The prefix; empty where nothing may be given, or nothing is asked for.
    """
    length = min(round(share * prefix_source.num_tokens), len(prefix_source.ids))
    if boundaries is not None:
        allowed = [0, *(at for at in boundaries if at <= len(prefix_source.ids))]
        length = min(allowed, key=lambda at: (abs(at - length), at))
    return prefix_source.ids[:length]


def uniform(seed: int, *where: object) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    return float(np.random.default_rng(int.from_bytes(digest(seed, *where)[:8], "little")).random())


def _require_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value:g}")
