"""The arms of the study and what each sweeps: four values of the one setting that sizes its step."""

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


def bounded(num_scores: int) -> Arm:
    """Scores whose step is sized by its divergence, as the exact direction's is."""
    settings = {"damping": 0.1, "num_scores": num_scores, "learning_rate": 1e3}
    return Arm("smac", "max_kl", plain(0.003, 0.01, 0.03, 0.1), settings)


# The effective learning rate, lr / damping, is 0.1 to 3 for the gradient and one score, and 0.3 to 10 for many scores.
ARMS = {
    "policy gradient": Arm("smac", "learning_rate", plain(0.1, 0.3, 1.0, 3.0), {"direction": "sgd"}),
    "SMAC": Arm("smac", "learning_rate", plain(0.1, 0.3, 1.0, 3.0), {"num_scores": 1, "damping": 1.0}),
    "SMAC, small damping": Arm(
        "smac", "learning_rate", plain(0.001, 0.003, 0.01, 0.03), {"num_scores": 1, "damping": 0.01}
    ),
    "SMAC, 16 scores": Arm("smac", "learning_rate", plain(0.03, 0.1, 0.3, 1.0), {"damping": 0.1, "num_scores": 16}),
    "SMAC, 64 scores": Arm("smac", "learning_rate", plain(0.03, 0.1, 0.3, 1.0), {"damping": 0.1, "num_scores": 64}),
    "SMAC, max_kl": bounded(1),
    "SMAC, 16 scores, max_kl": bounded(16),
    "SMAC, 64 scores, max_kl": bounded(64),
    "normalised gradient": Arm(
        "smac", "learning_rate", plain(0.01, 0.03, 0.1, 0.3), {"u": "grad", "num_scores": 1, "damping": 1e-4}
    ),
    "Adam": Arm("smac", "learning_rate", plain(3e-4, 1e-3, 3e-3, 1e-2), {"direction": "adam"}),
    "exact natural gradient": Arm(
        "smac",
        "max_kl",
        plain(0.003, 0.01, 0.03, 0.1),
        {"direction": "sample-space", "damping": 0.1, "learning_rate": 1e3},
    ),
    "TRPO": Arm("trpo", "target_kl", plain(0.003, 0.01, 0.03, 0.1)),
    "A2C": Arm("a2c", "learning_rate", plain(2e-4, 7e-4, 2e-3, 7e-3)),
    "PPO": Arm("ppo", "learning_rate", plain(1e-4, 3e-4, 1e-3, 3e-3)),
}

FEWER = tuple(name for name in ARMS if name not in ("SMAC, small damping", "SMAC, 64 scores", "normalised gradient"))
FEWEST = ("policy gradient", "SMAC", "SMAC, 16 scores", "PPO", "TRPO")


@dataclass(frozen=True)
class Race:
    """How far and how often one environment is raced."""

    num_steps: int
    num_seeds: int
    arms: tuple[str, ...] = tuple(ARMS)


SHORT = {
    "CartPole-v1": Race(20_000, 10),
    "Acrobot-v1": Race(60_000, 5, FEWER),
    "Pendulum-v1": Race(60_000, 5, FEWER),
    "MountainCarContinuous-v0": Race(50_000, 5, FEWEST),
    "HalfCheetah-v5": Race(50_000, 3, FEWEST),
    "Hopper-v5": Race(50_000, 3, FEWEST),
}
FULL = {
    **dict.fromkeys(("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"), Race(100_000, 10)),
    **dict.fromkeys(("HalfCheetah-v5", "Hopper-v5"), Race(300_000, 5)),
}
