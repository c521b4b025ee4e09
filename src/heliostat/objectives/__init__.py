"""The objective of an update, as pure functions of log-probabilities on ragged token axes.

    rewards of one group --advantages--> one number per completion
    lengths of one optimizer step --normalizer--> one denominator
    (logp_new, TokenBatch, normalizer) --loss--> scalar

Left out: sampling, forward passes and optimizers (``train``), diagnostics of the log-ratio (``monitors``), exact
population solutions (``theory``), and everything that changes the data: reward shaping for overlong answers and
re-sampling of zero-signal prompts belong to tasks and to the loop.
"""

from heliostat.objectives.contract import Objective, Terms
from heliostat.objectives.registry import (
    OBJECTIVES,
    build_objective,
    named_objective,
    objective_class,
    objective_names,
)

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Terms",
    "build_objective",
    "named_objective",
    "objective_class",
    "objective_names",
]
