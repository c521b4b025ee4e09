"""Our names for the metrics that other trainers log; their further metrics are not read.

Left out: metrics that they define in another way, like TRL's sampler mismatch.
"""

from __future__ import annotations

from collections.abc import Mapping

TRL_METRICS: Mapping[str, str] = {
    "loss": "loss/objective",
    "grad_norm": "optim/grad_norm",
    "learning_rate": "optim/lr",
    "entropy": "policy/entropy",
    "reward": "reward/mean",
    "frac_reward_zero_std": "reward/zero_signal",
    "completions/mean_length": "length/mean",
    "completions/max_length": "length/max",
    "completions/clipped_ratio": "length/truncated",
}
"""Metrics of transformers and TRL."""
VERL_METRICS: Mapping[str, str] = {
    "critic/score/mean": "reward/mean",
    "actor/entropy": "policy/entropy",
    "actor/grad_norm": "optim/grad_norm",
    "actor/lr": "optim/lr",
    "response_length/mean": "length/mean",
    "response_length/max": "length/max",
    "response_length/clip_ratio": "length/truncated",
}
"""Metrics of verl."""
METRIC_OF: Mapping[str, str] = {**TRL_METRICS, **VERL_METRICS}
