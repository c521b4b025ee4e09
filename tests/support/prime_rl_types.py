"""prime-rl's ``LossInputs`` and ``LossOutputs``, written out again from its documentation (0.8, August 2026).

Its package is on no index, so this is what its adapter runs on in tests. Left out: everything else of prime-rl.
"""

import sys
import types
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = None


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def install(monkeypatch):
    """Let ``prime_rl.trainer.rl.loss`` be imported for the length of a test."""
    name = "prime_rl.trainer.rl.loss"
    for depth in range(1, 5):
        part = ".".join(name.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].LossInputs = LossInputs
    sys.modules[name].LossOutputs = LossOutputs
