"""The design of the comparison of objectives and of the scale of tau. Nothing here trains.

Every run makes 24 optimizer steps on 32 episodes each (four problems, eight episodes a problem), all of them different.
"Updates per batch": how many of these minibatches are sampled at once, so how old the policy of the last of them is.

Every method tries the same three rates on one seed in each world and at each number of updates per batch; what is
reported are five other seeds at the best of them. Lookups of fewer hops take the rates of four hops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

NUM_UPDATES = 24
MINIBATCH_PROMPTS = 4
RATES: Mapping[str, tuple[float, ...]] = {"guess": (3e-4, 1e-3, 3e-3)}
"""Rates by task; of others:"""
OTHER_RATES = (1e-4, 3e-4, 1e-3)
TRIAL_SEED = 0
SEEDS = (10, 11, 12, 13, 14)
STALE, FRESH = 8, 2  # updates per batch
TAUS = (0.0125, 0.05, 0.2, 0.8)  # the first was added after the others had been seen


@dataclass(frozen=True)
class Arm:
    """One setting.

    Attributes:
        objective: its name in a recipe, with ``settings`` of its own.
        updates_per_batch: minibatches sampled at once, each used once.
    """

    world: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    updates_per_batch: int = STALE

    @property
    def method(self) -> str:
        """The objective with its settings, as tables call it."""
        return " ".join([self.objective, *(f"{key}={value}" for key, value in self.settings.items())])


@dataclass(frozen=True)
class Run:
    """An arm with its learning rate and seed."""

    arm: Arm
    lr: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it in the results file."""
        return {**asdict(self.arm), "settings": dict(self.arm.settings), "lr": self.lr, "seed": self.seed}


Row = Mapping[str, Any]

METHODS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("pmd-mean", {"tau": 0.2}),
    ("grpo", {}),
    # its default clip of 0.0003 is for answers of a thousand tokens; studies/pmd found 0.2 best for short ones
    ("gspo", {"clip_low": 0.2, "clip_high": 0.2}),
    ("reinforce", {}),
    ("cispo", {}),
)
TASKS = ("lookup-4", "guess-15", "maze-3")
RATE_OF = {"lookup-1": "lookup-4"}
KEY = tuple(Run(Arm("", ""), 0.0, 0).key)


class Done:
    """Finished runs, looked up by what identifies them."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: list[Row] = []
        self._by_key: dict[str, Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._by_key[_text({name: row[name] for name in KEY})] = row

    def find(self, run: Run) -> Row | None:
        """The result of a run, if it was made."""
        return self._by_key.get(_text(run.key))


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def arms_in(world: str, count: int = STALE) -> list[Arm]:
    """One arm for each method."""
    return [Arm(world, name, settings, count) for name, settings in METHODS]


def objectives(done: Done) -> Iterator[Run]:
    """Question 1: three tasks with old rollouts, then lookups of one hop, then fresher rollouts; seed by seed."""
    for world in TASKS:
        yield from trials(world)
    for seed in SEEDS:
        for world in TASKS:
            yield from confirm(done, arms_in(world), seed)
    for seed in SEEDS:
        yield from confirm(done, arms_in("lookup-1"), seed)
    yield from trials("lookup-4", FRESH)
    for seed in SEEDS:
        yield from confirm(done, arms_in("lookup-4", FRESH), seed)


def scales(done: Done) -> Iterator[Run]:
    """Question 2: every tau in lookups of one, two and four hops, at one rate for all."""
    del done  # no run waits for another
    for seed in SEEDS:
        for world in ("lookup-4", "lookup-1", "lookup-2"):
            yield Run(Arm(world, "reinforce"), SCALE_RATE, seed)
            for tau in TAUS:
                yield Run(Arm(world, "pmd-mean", {"tau": tau}), SCALE_RATE, seed)


def reasons(done: Done) -> Iterator[Run]:
    """Variants between REINFORCE, PMD-mean and CISPO in lookups of four hops, at the rate that suited all three.

    Added after the runs of question 1 were seen.
    """
    del done  # no run waits for another
    yield from (
        Run(Arm("lookup-4", name, settings), REASON_RATE, seed) for seed in SEEDS for name, settings in VARIANTS
    )


VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("cispo", {"baseline": "mean"}),
    ("reinforce", {"baseline": "standardized"}),
    ("reinforce", {"baseline": "standardized", "length_normalization": "token"}),
    ("log-ratio-decay", {"baseline": "standardized", "decay": 0.2}),
)
REASON_RATE = 3e-4
SCALE_RATE = 5e-4
"""Between the two higher rates of lookups: where rates are low, no tau acts."""


def rates_in(world: str) -> tuple[float, ...]:
    """Return the rates that every method tries in a world."""
    return RATES.get(world.partition("-")[0], OTHER_RATES)


def trials(world: str, count: int = STALE) -> Iterator[Run]:
    """The same trials for every method."""
    yield from (Run(arm, lr, TRIAL_SEED) for lr in rates_in(world) for arm in arms_in(world, count))


def confirm(done: Done, arms: Sequence[Arm], seed: int) -> Iterator[Run]:
    """One fresh seed at the rate that an arm's trials chose."""
    yield from (Run(arm, rate, seed) for arm in arms if (rate := best_rate(arm, done)))


def best_rate(arm: Arm, done: Done) -> float | None:
    """The rate with the highest final success in the arm's trials, or ``None`` while there are gaps."""
    tried = replace(arm, world=RATE_OF.get(arm.world, arm.world))
    rows = {lr: done.find(Run(tried, lr, TRIAL_SEED)) for lr in rates_in(tried.world)}
    finals = {lr: final(row) for lr, row in rows.items() if row is not None}
    return max(finals, key=lambda lr: finals[lr]) if len(finals) == len(rows) else None


def final(row: Row) -> float:
    """Held-out success at the end of a run."""
    return float(row["after"])
