"""The design: which runs there are, and in which order. Nothing here trains.

An *arm* is a setting; a *run* is an arm with a learning rate and a seed. Every run makes 128 optimizer steps on 64
rollouts each, all of them different: "updates per batch" says how many of these minibatches are sampled at once, so how
old the policy of the last of them is. All arms are therefore matched in samples, in updates and (nearly) in FLOPs; only
their time differs.

Screen, then confirm: at each number of updates per batch every method gets the same learning rates and two seeds; what
is reported are other seeds at the best of them. A lag of k reuses the rate of k updates per batch; other starts and
group sizes reuse the low start's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

NUM_UPDATES = 128
MINIBATCH_ROLLOUTS = 64
# Learning rates tried at each number of updates per batch: older rollouts need lower ones.
RATES: Mapping[int, tuple[float, ...]] = {
    1: (3e-4, 1e-3, 3e-3),
    4: (3e-4, 1e-3, 3e-3),
    16: (1e-4, 3e-4, 1e-3, 3e-3),
    64: (1e-4, 3e-4, 1e-3),
}
COUNTS = tuple(RATES)  # updates per batch
SCREEN_SEEDS = (0, 1)
FRESH_SEEDS = (10, 11, 12, 13, 14)


@dataclass(frozen=True)
class Arm:
    """One setting.

    Attributes:
        objective: its name in a recipe, with ``settings`` of its own.
        updates_per_batch: minibatches sampled at once, each used once.
        lag: updates between sampling a minibatch and using it, instead of sampling several at once.
        anchor: of a lagged minibatch: the policy that sampled it, or the one it is used at (recomputed).
        start: which warm-started model it starts from.
    """

    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    updates_per_batch: int = 1
    lag: int = 0
    anchor: str = "sampler"
    group_size: int = 8
    start: str = "low"

    @property
    def method(self) -> str:
        """The objective with its settings, as tables call it."""
        return " ".join([self.objective, *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def prompts_per_minibatch(self) -> int:
        return MINIBATCH_ROLLOUTS // self.group_size


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


BASELINES = tuple(Arm(name) for name in ("reinforce", "grpo", "gspo", "cispo"))
REINFORCE, GRPO = BASELINES[:2]
MEANS = tuple(Arm("pmd-mean", {"tau": tau}) for tau in (0.01, 0.05, 0.2, 0.5, 1.0))
MEAN = MEANS[2]
PARTS = tuple(Arm("pmd-part", {"tau": tau}) for tau in (0.2, 1.0))
EVERY = (*BASELINES, *MEANS, *PARTS)
MAIN = (*BASELINES, MEAN, *PARTS)
GROUPED = (GRPO, MEAN, *PARTS)
LAGGED = (*BASELINES, MEAN, PARTS[0])
KEY = tuple(Run(MEAN, 0.0, 0).key)
# Relatives of PMD-mean at tau = 0.2, run at its learning rate.
RELATIVES = (
    *(Arm("pmd-baseline", {"tau": 0.2, "mix": mix}) for mix in (0.25, 0.5, 0.75)),
    *(Arm("kl-chi2", {"tau": 0.2, "chi2_weight": weight}) for weight in (0.0, 0.1, 1.0)),
    Arm("log-ratio-decay", {"decay": 0.2, "level": "token"}),
    *(Arm("log-ratio-decay", {"decay": decay, "baseline": "standardized"}) for decay in (0.2, 0.5)),
)
# The clipped methods at other ranges than their defaults, each with its own screen: tau was tuned, so are these.
CLIPS = (
    *(Arm("grpo", {"clip_low": clip, "clip_high": clip}) for clip in (0.1, 0.4)),
    *(Arm("gspo", {"clip_low": clip, "clip_high": clip}) for clip in (0.03, 0.2)),
    *(Arm("cispo", {"clip_high": clip}) for clip in (0.5, 1.5)),
)
# Answers after any number of dots, which cost and earn nothing: only the objective changes lengths.
LENGTHS = tuple(
    Arm(name, {**settings, "length_normalization": mode}, 16, start=start)
    for start in ("dotted-low", "dotted-high")
    for name, settings in (("pmd-mean", {"tau": 0.2}), ("reinforce", {}))
    for mode in ("none", "sequence")
)


def plan(done: Done) -> Iterator[Run]:
    """Every run of the study, the most wanted first; confirmations wait for the rates that a screen chooses."""
    three, five = FRESH_SEEDS[:3], FRESH_SEEDS
    yield from screen(EVERY, 64)
    yield from confirm(done, EVERY, five, updates_per_batch=64)
    yield from screen(MAIN, 1)  # tau cannot act there
    yield from confirm(done, MAIN, five, updates_per_batch=1)
    yield from screen(EVERY, 16)
    yield from confirm(done, EVERY, five, updates_per_batch=16)
    yield from screen(MAIN, 4)
    for seeds in (three, five):
        yield from confirm(done, MAIN, seeds, updates_per_batch=4)
        yield from confirm(done, MAIN, seeds, updates_per_batch=16, start="high")
        for lag in (4, 16, 64):
            yield from confirm(done, LAGGED, seeds, lag=lag)
        if seeds is three:
            yield from screen(CLIPS, 64)
        yield from confirm(done, CLIPS, seeds, updates_per_batch=64)
        yield from confirm(done, RELATIVES, seeds, updates_per_batch=64)
        for lag in (4, 16, 64):
            yield from confirm(done, LAGGED, seeds, lag=lag, anchor="recomputed")
        yield from confirm(done, MAIN, seeds, updates_per_batch=64, start="high")
        for size in (4, 16):
            yield from confirm(done, GROUPED, seeds, updates_per_batch=16, group_size=size)
        yield from confirm(done, LENGTHS, seeds)


def screen(arms: Sequence[Arm], count: int) -> Iterator[Run]:
    """The same trials for every arm."""
    screened = [replace(arm, updates_per_batch=count) for arm in arms]
    yield from (Run(arm, lr, seed) for seed in SCREEN_SEEDS for arm in screened for lr in RATES[count])


def confirm(done: Done, arms: Sequence[Arm], seeds: Sequence[int], **change: Any) -> Iterator[Run]:
    """Fresh seeds at the rate its screen chose, seed by seed so that all arms are equally far at any time."""
    rates = [(arm, best_rate(arm, done)) for arm in (replace(arm, **change) for arm in arms)]
    yield from (Run(arm, rate, seed) for seed in seeds for arm, rate in rates if rate)


def best_rate(arm: Arm, done: Done) -> float | None:
    """The learning rate with the highest mean final success in the method's screen, or ``None`` while that has gaps."""
    finals = screened(arm, done)
    return max(finals, key=lambda lr: finals[lr]) if finals else None


def screened(arm: Arm, done: Done) -> dict[float, float]:
    """Mean final success of an arm's screen by learning rate; empty while it has gaps."""
    relative = any(arm.method == other.method for other in RELATIVES)
    settings = {key: value for key, value in arm.settings.items() if key != "length_normalization"}
    # Runs on dotted answers precede the screens at 16 updates per batch; they keep the rates of 64.
    count = 64 if arm.start.startswith("dotted") else arm.lag or arm.updates_per_batch
    method = replace(MEAN if relative else Arm(arm.objective, settings), updates_per_batch=count)
    rows = {lr: [done.find(Run(method, lr, seed)) for seed in SCREEN_SEEDS] for lr in RATES[count]}
    if not all(row for found in rows.values() for row in found):
        return {}
    return {lr: sum(final(row) for row in found if row) / len(found) for lr, found in rows.items()}


def final(row: Row) -> float:
    """Held-out success at the end of a run."""
    return float(row["curve"][-1]["heldout"])
