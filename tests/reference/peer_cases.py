"""Shared random inputs for comparing objectives with other frameworks, as seeds; needs numpy only.

Each case names a peer's function with its settings, and our objective with the settings that should give the same loss
and gradient. Drawn from ``Generator.random``, whose stream numpy keeps stable; ``checksum`` notices if it does not.

Left out: running the peers (``record_peers``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = (4, 3, 2)  # completions of each prompt
MAX_LENGTH = 7

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """Padded ``(sequence, position)`` arrays with a mask, as the peers take them."""

    mask: NDArray[np.bool_]
    logp_new: FloatArray
    logp_old: FloatArray
    logp_gen: FloatArray
    logp_ref: FloatArray
    advantages: FloatArray
    rewards: FloatArray
    group: NDArray[np.int64]

    @property
    def checksum(self) -> float:
        """Changes if any input does."""
        return float(sum((index + 1) * getattr(self, name).sum() for index, name in enumerate(_FLOATS)))


_FLOATS = ("logp_new", "logp_old", "logp_gen", "logp_ref", "advantages", "rewards")


def draw(seed: int) -> Inputs:
    """Log-ratios of up to +-0.5 nats, so that every clip below binds on some tokens and not on others."""
    random = np.random.default_rng(seed)
    size = sum(GROUPS)
    lengths = 1 + np.floor(MAX_LENGTH * random.random(size)).astype(np.int64)
    mask = np.arange(MAX_LENGTH) < lengths[:, None]

    def near(values: FloatArray, width: float) -> FloatArray:
        return values + width * (2 * random.random(values.shape) - 1)

    logp_old = -0.6 - 2.0 * random.random((size, MAX_LENGTH))
    return Inputs(
        mask=mask,
        logp_old=logp_old,
        logp_new=near(logp_old, 0.5),
        logp_gen=near(logp_old, 0.2),
        logp_ref=near(logp_old, 0.3),
        advantages=near(np.zeros(size), 2.0),
        rewards=np.round(4 * random.random(size)) / 4,
        group=np.repeat(np.arange(len(GROUPS)), GROUPS),
    )


@dataclass(frozen=True)
class LossCase:
    """One loss of one peer, and ours that should equal it.

    Attributes:
        peer: which runner of ``record_peers`` evaluates it.
        peer_settings: the peer's own arguments.
        objective: our name and settings.
        tolerance: largest accepted absolute difference; above rounding only where the peer adds an epsilon.
        at_anchor: evaluate at ``logp_new = logp_old``.
        gradient_only: the peer's loss is another function with the same gradient there.
    """

    key: str
    peer: str
    peer_settings: Mapping[str, Any]
    objective: tuple[str, Mapping[str, Any]]
    seed: int = 1
    tolerance: float = 1e-13
    at_anchor: bool = False
    gradient_only: bool = False


_SEQUENCE_MEAN_EPSILON = 1e-7  # verl adds 1e-8 to every length

LOSSES: tuple[LossCase, ...] = (
    LossCase("trl grpo", "trl", {"loss_type": "grpo"}, ("grpo", {})),
    LossCase("trl grpo, KL to a reference", "trl", {"loss_type": "grpo", "beta": 0.04}, ("grpo", {"kl_ref": 0.04})),
    LossCase(
        "trl grpo, truncated importance weights",
        "trl",
        {"loss_type": "grpo", "importance_cap": 1.1, "beta": 0.04},
        ("grpo", {"truncated_is": 1.1, "kl_ref": 0.04}),
    ),
    LossCase("trl bnpo", "trl", {"loss_type": "bnpo"}, ("grpo", {"length_normalization": "token"})),
    LossCase("trl dr_grpo", "trl", {"loss_type": "dr_grpo"}, ("dr-grpo", {"length_constant": float(MAX_LENGTH)})),
    LossCase("trl dapo", "trl", {"loss_type": "dapo", "epsilon_high": 0.28}, ("dapo", {}), seed=2),
    LossCase(
        "trl cispo", "trl", {"loss_type": "cispo", "epsilon_high": 1.3}, ("cispo", {"clip_low": 1.0, "clip_high": 0.3})
    ),
    LossCase(
        "trl gspo",
        "trl",
        {"loss_type": "grpo", "level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
        ("gspo", {"clip_low": 0.05, "clip_high": 0.08}),
        seed=3,
    ),
    LossCase(
        "trl luspo",
        "trl",
        {"loss_type": "luspo", "level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
        ("gspo", {"clip_low": 0.05, "clip_high": 0.08, "length_normalization": "none"}),
        seed=3,
    ),
    LossCase("trl rloo at the anchor", "trl-rloo", {}, ("rloo", {}), at_anchor=True, gradient_only=True),
    LossCase("verl vanilla, token mean", "verl", {"mode": "vanilla"}, ("grpo", {"length_normalization": "token"})),
    LossCase(
        "verl vanilla, sequence sum",
        "verl",
        {"mode": "vanilla", "aggregate": "seq-mean-token-sum"},
        ("grpo", {"length_normalization": "none"}),
    ),
    LossCase(
        "verl vanilla, constant length",
        "verl",
        {"mode": "vanilla", "aggregate": "seq-mean-token-sum-norm"},
        ("grpo", {"length_normalization": "constant", "length_constant": float(MAX_LENGTH)}),
    ),
    LossCase(
        "verl vanilla, sequence mean",
        "verl",
        {"mode": "vanilla", "aggregate": "seq-mean-token-mean"},
        ("grpo", {}),
        tolerance=_SEQUENCE_MEAN_EPSILON,
    ),
    LossCase(
        "verl vanilla, clip higher, truncated importance weights",
        "verl",
        {"mode": "vanilla", "clip_high": 0.28, "importance_cap": 1.1},
        ("dapo", {"truncated_is": 1.1}),
        seed=2,
    ),
    LossCase(
        "verl gspo",
        "verl",
        {"mode": "gspo", "aggregate": "seq-mean-token-mean", "clip_low": 0.05, "clip_high": 0.08},
        ("gspo", {"clip_low": 0.05, "clip_high": 0.08}),
        seed=3,
        tolerance=_SEQUENCE_MEAN_EPSILON,
    ),
    LossCase(
        "verl gspo, token mean, truncated importance weights",
        "verl",
        {"mode": "gspo", "clip_low": 0.05, "clip_high": 0.08, "importance_cap": 1.1},
        ("gspo", {"clip_low": 0.05, "clip_high": 0.08, "length_normalization": "token", "truncated_is": 1.1}),
        seed=3,
    ),
    LossCase(
        "verl cispo",
        "verl",
        {"mode": "cispo", "clip_low": 0.2, "clip_high": 0.3},
        ("cispo", {"clip_low": 0.2, "clip_high": 0.3}),
    ),
    LossCase(
        "verl dppo_tv",
        "verl",
        {"mode": "dppo_tv", "clip_low": 0.05, "clip_high": 0.08, "clip_c": 1.4},
        ("dppo", {"max_decrease": 0.05, "max_increase": 0.08, "max_ratio": 1.4}),
    ),
    LossCase(
        "verl dro",
        "verl",
        {"mode": "dro", "dro_beta": 0.7},
        ("log-ratio-decay", {"level": "token", "decay": 0.7, "length_normalization": "token"}),
    ),
    LossCase("verl gpg", "verl", {"mode": "gpg", "aggregate": "seq-mean-token-sum"}, ("reinforce", {})),
)


@dataclass(frozen=True)
class AdvantageCase:
    """One advantage estimator of verl, and our baseline that should equal it."""

    key: str
    estimator: str
    baseline: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 4


ADVANTAGES: tuple[AdvantageCase, ...] = (
    AdvantageCase("verl grpo", "grpo", "standardized", {"epsilon": 1e-4}),
    AdvantageCase("verl grpo without scaling", "grpo", "mean", {"norm_adv_by_std_in_grpo": False}),
    AdvantageCase("verl rloo", "rloo", "leave-one-out"),
)
