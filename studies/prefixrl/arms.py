"""The arms: what differs between runs. Nothing here trains.

Every arm makes 80 updates on 64 completions each from the same start, at the same learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offpolicy import Luffy, Stored

from heliostat.objectives import Objective
from heliostat.objectives.policy_gradient import Cispo

NUM_STEPS = 80
RATES = (1e-3,)
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Arm:
    """One way to use 80 updates.

    Attributes:
        rollout, prefix: keys of those sections of the recipe.
        stored: puts a trace into every group.
        objective: in place of the recipe's REINFORCE.
        sft_lr, sft_steps: supervised steps on the traces before anything else; rate 0: none.
    """

    name: str
    rollout: Mapping[str, Any] = field(default_factory=dict)
    prefix: Mapping[str, Any] = field(default_factory=dict)
    stored: Stored | None = None
    objective: Objective | None = None
    sft_lr: float = 0.0
    sft_steps: int = 100

    @property
    def uses_traces(self) -> bool:
        """Whether it has to pay for the collection."""
        return bool(self.prefix or self.stored or self.sft_lr)


CAPPED = Cispo(length_normalization="token", baseline="mean")

ARMS = {
    arm.name: arm
    for arm in (
        Arm("rl-8"),
        Arm("prefix", prefix={"name": "band"}),
        Arm("prefix-only", prefix={"name": "band", "share": 1.0}),
        Arm("rl-64", {"prompts_per_step": 1, "group_size": 64}),
        Arm("sft-rl", sft_lr=1e-3),
        Arm("importance", stored=Stored("recorded"), objective=CAPPED),
        Arm("luffy", stored=Stored("certain"), objective=Luffy(length_normalization="token")),
        Arm("shortest", prefix={"name": "backtracking", "target": 0.125}),
        Arm("unrelated-only", prefix={"name": "band", "share": 1.0, "deliver": "unrelated"}),
    )
}
