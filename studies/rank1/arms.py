"""The arms of the study and what each sweeps: three values of the one setting that sizes its step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to move the actor.

    Attributes:
        key: the swept setting.
        values: its values, by environment or for all (``""``).
    """

    algo: str
    key: str
    values: dict[str, tuple[float, ...]]
    settings: dict[str, Any] = field(default_factory=dict)

    def swept(self, env: str) -> tuple[float, ...]:
        return self.values.get(env, self.values.get("", ()))


def plain(*values: float) -> dict[str, tuple[float, ...]]:
    return {"": values}


# The effective learning rate, lr / damping, is 0.3, 1 and 3 for every arm of the first block: equal steps, so that only
# the direction differs.
ARMS = {
    "policy gradient": Arm("smac", "learning_rate", plain(0.3, 1.0, 3.0), {"direction": "sgd"}),
    "SMAC": Arm("smac", "learning_rate", plain(0.3, 1.0, 3.0), {"damping": 1.0}),
    "SMAC, small damping": Arm("smac", "learning_rate", plain(0.003, 0.01, 0.03), {"damping": 0.01}),
    "SMAC, 16 scores": Arm("smac", "learning_rate", plain(0.03, 0.1, 0.3), {"damping": 0.1, "num_scores": 16}),
    "SMAC, 64 scores": Arm("smac", "learning_rate", plain(0.03, 0.1, 0.3), {"damping": 0.1, "num_scores": 64}),
    "normalised gradient": Arm("smac", "learning_rate", plain(0.03, 0.1, 0.3), {"u": "grad", "damping": 1e-4}),
    "Adam": Arm("smac", "learning_rate", plain(1e-3, 3e-3, 1e-2), {"direction": "adam"}),
    "exact natural gradient": Arm(
        "smac", "max_kl", plain(0.003, 0.01, 0.03), {"direction": "sample-space", "damping": 0.1, "learning_rate": 1e3}
    ),
    "TRPO": Arm("trpo", "target_kl", plain(0.003, 0.01, 0.03)),
    "A2C": Arm("a2c", "learning_rate", plain(2e-4, 7e-4, 2e-3)),
    "PPO": Arm("ppo", "learning_rate", plain(3e-4, 1e-3, 3e-3)),
}

SHORT = {"CartPole-v1": 20_000, "Pendulum-v1": 30_000, "Acrobot-v1": 30_000, "MountainCarContinuous-v0": 20_000}
FULL = {
    **dict.fromkeys(("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"), 100_000),
    **dict.fromkeys(("HalfCheetah-v5", "Hopper-v5"), 300_000),
}
