"""The design: which runs there are, and in which order. Nothing here trains.

An *arm* is a setting; a *run* is an arm with a learning rate and a seed. Every run makes 128 optimizer steps on 64
rollouts each, all of them different: "updates per batch" says how many of these minibatches are sampled at once, so how
old the policy of the last of them is. All arms are therefore matched in samples, in updates and (nearly) in FLOPs; only
their time differs.

Screen, then confirm: every method gets the same three learning rates and two seeds at 64 updates per batch; what is
reported are other seeds at the best of the three. Other settings reuse that rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

NUM_UPDATES = 128
MINIBATCH_ROLLOUTS = 64
RATES = (1e-4, 3e-4, 1e-3)
SCREEN_SEEDS = (0, 1)
FRESH_SEEDS = (10, 11, 12, 13, 14)
COUNTS = (1, 4, 16, 64)  # updates per batch
SCREENED = 64


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


Done = Sequence[Mapping[str, Any]]

BASELINES = tuple(Arm(name) for name in ("reinforce", "grpo", "gspo", "cispo"))
MEANS = tuple(Arm("pmd-mean", {"tau": tau}) for tau in (0.05, 0.2, 1.0))
PARTS = tuple(Arm("pmd-part", {"tau": tau}) for tau in (0.2, 1.0))
EVERY = (*BASELINES, *MEANS, *PARTS)
MAIN = (*BASELINES, MEANS[1], *PARTS)
GROUPED = (BASELINES[1], MEANS[1], *PARTS)
# What is close to PMD-mean at tau = 0.2, and runs at its learning rate.
RELATIVES = (
    *(Arm("pmd-baseline", {"tau": 0.2, "mix": mix}) for mix in (0.25, 0.5, 0.75)),
    *(Arm("kl-chi2", {"tau": 0.2, "chi2_weight": weight}) for weight in (0.0, 0.1, 1.0)),
    Arm("log-ratio-decay", {"decay": 0.2, "level": "token"}),
)
# Answers after any number of dots, which cost and earn nothing: what lengths do is the objective's doing.
LENGTHS = tuple(
    Arm(name, {**settings, "length_normalization": mode}, 16, start=start)
    for start in ("dotted-low", "dotted-high")
    for name, settings in (("pmd-mean", {"tau": 0.2}), ("reinforce", {}))
    for mode in ("none", "sequence")
)


def plan(done: Done) -> Iterator[Run]:
    """Every run of the study, the most wanted first; all but the first part wait for the rates that it chooses."""
    yield from screen(EVERY)
    yield from confirm(done, EVERY, updates_per_batch=64)
    for seeds in (FRESH_SEEDS[:3], FRESH_SEEDS):
        yield from confirm(done, EVERY, seeds, updates_per_batch=16)
        yield from confirm(done, RELATIVES, seeds, updates_per_batch=64)
        yield from confirm(done, MAIN, seeds, updates_per_batch=64, start="high")
        yield from confirm(done, (*BASELINES, MEANS[1], *PARTS), seeds, updates_per_batch=1)  # tau cannot act there
        yield from confirm(done, MAIN, seeds, lag=64, anchor="recomputed")
        yield from confirm(done, MAIN, seeds, lag=64)
        yield from confirm(done, GROUPED, seeds, updates_per_batch=16, group_size=4)
        yield from confirm(done, GROUPED, seeds, updates_per_batch=16, group_size=16)
        yield from confirm(done, LENGTHS[:4], seeds)
        yield from confirm(done, LENGTHS[4:], seeds)
        yield from confirm(done, MAIN, seeds, updates_per_batch=16, start="high")
        yield from confirm(done, EVERY, seeds, updates_per_batch=4)


def screen(arms: Sequence[Arm]) -> Iterator[Run]:
    """The same trials for every arm."""
    screened = [replace(arm, updates_per_batch=SCREENED) for arm in arms]
    yield from (Run(arm, lr, seed) for seed in SCREEN_SEEDS for arm in screened for lr in RATES)


def confirm(done: Done, arms: Sequence[Arm], seeds: Sequence[int] = FRESH_SEEDS, **change: Any) -> Iterator[Run]:
    """Fresh seeds at the rate its screen chose, seed by seed so that all arms are equally far at any time."""
    changed = [replace(arm, **change) for arm in arms]
    yield from (Run(arm, rate, seed) for seed in seeds for arm in changed if (rate := best_rate(arm, done)))


def best_rate(arm: Arm, done: Done) -> float | None:
    """The learning rate with the highest mean final success in the method's screen, or ``None`` while that has gaps."""
    relative = any(arm.method == other.method for other in RELATIVES)
    settings = {key: value for key, value in arm.settings.items() if key != "length_normalization"}
    method = MEANS[1] if relative else Arm(arm.objective, settings)
    screened = replace(method, updates_per_batch=SCREENED)
    finals = {lr: [final(row) for seed in SCREEN_SEEDS if (row := find(Run(screened, lr, seed), done))] for lr in RATES}
    if any(len(values) < len(SCREEN_SEEDS) for values in finals.values()):
        return None
    return max(RATES, key=lambda lr: sum(finals[lr]))


def find(run: Run, done: Done) -> Mapping[str, Any] | None:
    """The result of a run, if it was made."""
    key = run.key
    return next((row for row in done if all(row[name] == value for name, value in key.items())), None)


def final(row: Mapping[str, Any]) -> float:
    """Held-out success at the end of a run."""
    return float(row["curve"][-1]["heldout"])
