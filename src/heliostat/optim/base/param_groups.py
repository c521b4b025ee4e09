"""Parameter groups: matrices with weight decay; norms, biases and scales without.

Left out: which parameters belong to which rule (each optimizer's).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

ParamGroups = list[dict[str, Any]]
"""Parameter groups as torch's optimizers take them: ``params``, and settings of the group."""


def decay_groups(named: Iterable[tuple[str, Tensor]], weight_decay: float, **settings: Any) -> ParamGroups:
    """Put named parameters in two groups, of which only the matrices decay; an empty group is left out.

    Args:
        settings: further entries of both groups.
    """
    pairs = list(named)
    groups: ParamGroups = [
        {"params": [pair for pair in pairs if pair[1].ndim >= 2], "weight_decay": weight_decay, **settings},
        {"params": [pair for pair in pairs if pair[1].ndim < 2], "weight_decay": 0.0, **settings},
    ]
    return [group for group in groups if group["params"]]
