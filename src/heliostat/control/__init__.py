"""Actor-critic on gymnasium, as a Stable-Baselines3 algorithm: the rank-1 natural policy gradient and its family.

    SMAC("MlpPolicy", "CartPole-v1").learn(100_000)

smac          the algorithm: ``train()`` is the update
directions    the actor's steps: rank-1 (one score, many, mean, gradient), Eva, exact, plain
sample_space  the exact damped natural gradient, solved among samples
actor         the actor's parameters in a policy, and their scores
algorithms    SMAC, A2C, PPO and TRPO with their settings per environment
race          one environment, several algorithms and seeds, in parallel processes, into a run folder
runs          reading that folder, without heavy imports

Names load on first use: Stable-Baselines3 and gymnasium come with the extra ``control``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heliostat.extras import named

if TYPE_CHECKING:
    from heliostat.control.directions import AdamGradient, EvaLayers, Gradient, Rank1, SampleSpace
    from heliostat.control.smac import SMAC, PolicyDiverged

__all__ = ["SMAC", "AdamGradient", "EvaLayers", "Gradient", "PolicyDiverged", "Rank1", "SampleSpace"]
IN_SMAC = ("SMAC", "PolicyDiverged")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'heliostat.control' has no attribute '{name}'")
    with named(f"heliostat.control.{name}"):
        return getattr(import_module(f"heliostat.control.{'smac' if name in IN_SMAC else 'directions'}"), name)
