"""The arms: what differs between runs. Nothing here trains.

Every arm makes the same number of updates on 64 completions each from the same start, unless its ``length`` says
otherwise. Each tries every rate on a seed of its own, and makes its other seeds at the rate that ended best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offpolicy import Luffy, Stored

from heliostat.objectives import Objective
from heliostat.objectives.policy_gradient import Cispo

RATES = {"T1": (1e-3, 3e-4, 3e-3), "T2": (1e-3, 3e-4, 3e-3), "T3": (3e-4, 1e-4, 3e-5), "T4": ()}
RATES_FROM = {"T4": "T3"}
"""Tasks that are run once, without trials: their arms take the rates that did best on another."""
TRIAL_SEED = 0
NUM_SEEDS = {"T1": 3, "T2": 3, "T3": 3, "T4": 1}
MORE_SEEDS = {("T1", "rl-8-long-slow"): 8, ("T1", "prefix-long"): 8}
"""Where three seeds lie too far apart to be compared."""


def seeds_of(task: str, arm: str) -> tuple[int, ...]:
    """Seeds of an arm at its best rate."""
    return tuple(range(1, 1 + MORE_SEEDS.get((task, arm), NUM_SEEDS[task])))


@dataclass(frozen=True)
class Arm:
    """One way to use the updates.

    Attributes:
        rollout, prefix: keys of those sections of the recipe.
        stored: puts a trace into every group.
        objective: in place of the recipe's REINFORCE.
        sft_lr, sft_steps: supervised steps on the traces before anything else; rate 0: none.
        trains_prefix: prefix tokens are trained on as if they had been sampled.
        length: times the task's number of updates.
        rate_of: the arm whose best rate this one takes; empty: its own trials.
        tried_on: tasks on which it has trials of its own nevertheless.
    """

    name: str
    rollout: Mapping[str, Any] = field(default_factory=dict)
    prefix: Mapping[str, Any] = field(default_factory=dict)
    stored: Stored | None = None
    objective: Objective | None = None
    sft_lr: float = 0.0
    sft_steps: int = 100
    trains_prefix: bool = False
    length: int = 1
    rate_of: str = ""
    tried_on: tuple[str, ...] = ()

    def trials(self, task: str) -> str:
        """The arm whose trials choose this one's rate."""
        return self.name if task in self.tried_on else self.rate_of or self.name

    @property
    def uses_traces(self) -> bool:
        """Whether it has to pay for the collection."""
        return bool(self.prefix or self.stored or self.sft_lr)


CAPPED = Cispo(length_normalization="token", baseline="mean")
BAND = {"name": "band"}
ONLY = {"name": "band", "share": 1.0}
SHORTEST = {"name": "backtracking", "target": 0.125}

ARMS = {
    arm.name: arm
    for arm in (
        Arm("rl-8"),
        Arm("prefix", prefix=BAND),
        Arm("prefix-only", prefix=ONLY),
        Arm("rl-64", {"prompts_per_step": 1, "group_size": 64}),
        Arm("sft-rl", sft_lr=1e-3),
        Arm("importance", stored=Stored("recorded"), objective=CAPPED),
        Arm("luffy", stored=Stored("certain"), objective=Luffy(length_normalization="token")),
        Arm("shortest", prefix=SHORTEST),
        Arm("unrelated-only", prefix={**ONLY, "mode": "unrelated"}),
        Arm("targeted", prefix={"name": "targeted"}),
        Arm("annealed", prefix={"name": "annealed", "num_steps": 60}),
        Arm("hint", prefix={**BAND, "mode": "hint"}),
        Arm("trained-prefix", prefix=BAND, trains_prefix=True),
        Arm("rl-8-long", length=4, rate_of="rl-8", tried_on=("T1", "T3")),
        Arm("rl-8-longest", length=12, rate_of="rl-8-long"),  # at the cost of shortest-long
        Arm("rl-8-long-slow", length=4, rate_of="prefix"),  # plain RL at the rate that suits prefixes
        Arm("prefix-long", prefix=BAND, length=4, rate_of="prefix", tried_on=("T1", "T3")),
        Arm("shortest-long", prefix=SHORTEST, length=4, rate_of="shortest", tried_on=("T1", "T3")),
        Arm("annealed-long", prefix={"name": "annealed", "num_steps": 240}, length=4, rate_of="annealed"),
        Arm("prefix-only-long", prefix=ONLY, length=4, rate_of="prefix-only", tried_on=("T3",)),
    )
}
SMALL = tuple(name for name in ARMS if name != "rl-8-longest")
OF_TASK = {
    "T1": SMALL,
    "T2": SMALL,
    "T3": (
        *("rl-8", "prefix", "prefix-only", "shortest", "sft-rl"),
        *("rl-8-long", "prefix-long", "shortest-long", "prefix-only-long", "rl-8-longest"),
    ),
    "T4": ("rl-8", "prefix", "shortest", "sft-rl"),
}
