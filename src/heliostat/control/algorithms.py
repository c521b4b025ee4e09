"""SMAC and its peers A2C, PPO and TRPO: their classes, and their settings by environment.

Peers come from stable_baselines3 and sb3_contrib themselves. Their settings are those of rl-baselines3-zoo where an
environment is listed here, and the libraries' defaults elsewhere; the budgets they were tuned for are often larger.
MuJoCo is the exception: the zoo tunes it for a million steps and more, and here all algorithms have the defaults and
normalised observations and rewards.

Left out: tuning; every setting can be overridden by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from heliostat.config import nearest

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

ALGORITHMS = ("smac", "a2c", "ppo", "trpo")


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of an algorithm on an environment.

    Attributes:
        num_envs: copies of the environment, stepped in one process.
        normalize: observations and rewards by running statistics (``VecNormalize``).
        settings: arguments of the algorithm's class; those of SMAC's direction under its own name.
    """

    num_envs: int = 8
    normalize: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


_SMAC: dict[str, Any] = {"n_steps": 64, "gae_lambda": 0.95}
_DEFAULTS = {
    "smac": Setup(settings=_SMAC),
    "a2c": Setup(),
    "ppo": Setup(settings={"n_steps": 256}),
    "trpo": Setup(2, settings={"n_steps": 1024}),
}
_KNOWN = {
    ("smac", "CartPole-v1"): Setup(settings={**_SMAC, "gamma": 0.98}),
    ("smac", "Acrobot-v1"): Setup(normalize=True, settings=_SMAC),
    ("smac", "Pendulum-v1"): Setup(settings={**_SMAC, "gamma": 0.9, "n_steps": 128}),
    ("a2c", "CartPole-v1"): Setup(8, settings={"ent_coef": 0.0}),
    ("a2c", "Acrobot-v1"): Setup(16, normalize=True, settings={"ent_coef": 0.0}),
    ("a2c", "Pendulum-v1"): Setup(
        8,
        normalize=True,
        settings={
            **{"n_steps": 8, "gamma": 0.9, "gae_lambda": 0.9, "vf_coef": 0.4, "max_grad_norm": 0.5},
            **{"use_sde": True, "use_rms_prop": True, "normalize_advantage": False, "ent_coef": 0.0},
        },
    ),
    ("ppo", "CartPole-v1"): Setup(
        8,
        settings={
            **{"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8},
            **{"learning_rate": 1e-3, "clip_range": 0.2, "ent_coef": 0.0},
        },
    ),
    ("ppo", "Pendulum-v1"): Setup(
        4, settings={"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4}
    ),
    ("trpo", "CartPole-v1"): Setup(
        2,
        settings={
            **{"n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98},
            **{"learning_rate": 1e-3, "n_critic_updates": 20},
        },
    ),
    ("trpo", "Acrobot-v1"): Setup(2, normalize=True, settings={"n_steps": 1024}),
    ("trpo", "Pendulum-v1"): Setup(
        2,
        settings={"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True, "sde_sample_freq": 4},
    ),
}
_MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5")


def setup_of(algo: str, env: str) -> Setup:
    """Look up the settings of an algorithm on an environment; unknown environments get the algorithm's defaults.

    Raises:
        ValueError: unknown algorithm.
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algo}'{nearest(algo, ALGORITHMS)}; known: {', '.join(ALGORITHMS)}")
    known = _KNOWN.get((algo, env), _DEFAULTS[algo])
    return replace(known, normalize=True) if env in _MUJOCO else known


def algorithm_class(algo: str) -> type[BaseAlgorithm]:
    """Look up an algorithm's class by name."""
    import sb3_contrib
    import stable_baselines3

    from heliostat.control.smac import SMAC

    classes: dict[str, type[BaseAlgorithm]] = {
        **{"smac": SMAC, "trpo": sb3_contrib.TRPO},
        **{"a2c": stable_baselines3.A2C, "ppo": stable_baselines3.PPO},
    }
    return classes[algo]


def arguments_of(algo: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build constructor arguments; for SMAC, settings of its direction (``num_scores``, ``damping``) go into it.

    Raises:
        ValueError: an argument that the algorithm does not have.
    """
    known = set(inspect.signature(algorithm_class(algo)).parameters) - {"policy", "env", "_init_setup_model"}
    arguments = {key: value for key, value in settings.items() if key in known}
    rest = {key: value for key, value in settings.items() if key not in known}
    if algo == "smac":
        arguments["direction"], own = _direction(arguments.get("direction", "rank1"), rest)
        known |= own
    if unknown := sorted(set(rest) - known):
        raise ValueError(f"{algo} has no setting '{unknown[0]}'{nearest(unknown[0], known)}")
    return arguments


def described(algo: str, env: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an algorithm's settings for people: known ones, given ones, and the default step size."""
    setup = setup_of(algo, env)
    arguments = arguments_of(algo, {**setup.settings, **settings})
    arguments.setdefault("learning_rate", inspect.signature(algorithm_class(algo)).parameters["learning_rate"].default)
    if "direction" in arguments:
        arguments["direction"] = str(arguments["direction"])
    return {"num_envs": setup.num_envs, "normalize": setup.normalize, **arguments}


def _direction(name: str, settings: Mapping[str, Any]) -> tuple[Any, set[str]]:
    from heliostat.control.directions import DIRECTIONS, direction_of

    kind: type[Any] = DIRECTIONS[direction_of(name).name]
    own = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in settings.items() if key in own}), own
