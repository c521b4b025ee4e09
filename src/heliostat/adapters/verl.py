"""verl: policy losses and advantage estimators that verl registers when it loads this module in each of its processes.

    export VERL_USE_EXTERNAL_MODULES=heliostat.adapters.verl
    export HELIOSTAT_OBJECTIVE='{"name": "pmd-mean", "tau": 0.1}'
    ... algorithm.adv_estimator=heliostat actor_rollout_ref.actor.policy_loss.loss_mode=heliostat

Every objective whose loss is a sum over completions is there under ``heliostat-<name>`` with its defaults, and under
``heliostat`` the one that HELIOSTAT_OBJECTIVE describes: verl's policy-loss configuration is closed, a key like tau
cannot be added to it, and the environment reaches every worker. ``register`` does the same from a module of your own.

The loss is divided by verl's global counts, so it does not depend on micro-batches or ranks. verl keeps its KL and
entropy terms. Left out: a penalty to a reference inside the objective (verl's ``actor.use_kl_loss`` is that), and
advantages that differ between the tokens of a completion.

Written for verl 0.9.1. **Limits**: a batch on one rank: our own loss and gradient.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

from heliostat.adapters.padded import group_advantages, only_advantage, padded_loss, refuse_whole_groups
from heliostat.config import ConfigError, ObjectiveSection
from heliostat.objectives import OBJECTIVES, Objective, build_objective

ENVIRONMENT = "HELIOSTAT_OBJECTIVE"

AGGREGATION = {
    "none": "seq-mean-token-sum",
    "sequence": "seq-mean-token-mean",
    "constant": "seq-mean-token-sum-norm",
    "token": "token-mean",
}
"""verl's name for each length normalisation."""


def register(name: str, objective: Objective) -> None:
    """Make an objective available to verl as a policy loss and as an advantage estimator, both called ``name``.

    Raises:
        ConfigError: the objective has a penalty to a reference, whose log-probs verl does not pass to a policy loss,
            or compares the completions of a prompt within its loss.
    """
    refuse_whole_groups(objective, "verl")
    if objective.needs_reference:
        raise ConfigError(
            f"verl passes no reference to a policy loss: leave kl_ref of '{objective.name}' at 0 and use "
            "actor_rollout_ref.actor.use_kl_loss"
        )
    register_policy_loss(name)(policy_loss(objective))
    register_adv_est(name)(advantage_estimator(objective))


def policy_loss(objective: Objective) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Wrap an objective in the signature of verl's policy losses."""

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        _check(objective, loss_agg_mode, rollout_is_weights)
        mask = response_mask.bool()
        output = padded_loss(
            objective,
            log_prob,
            mask,
            only_advantage(advantages, mask),
            _normalizer(objective, mask, config.global_batch_info if config is not None else {}),
            logp_old=old_log_prob,
            logp_gen=None if rollout_is_weights is None else old_log_prob - rollout_is_weights.log(),
        )
        log_ratio = (log_prob.detach() - old_log_prob)[mask]
        metrics = {f"actor/{key.replace('/', '_')}": mean.value for key, mean in output.metrics.items()}
        return output.loss, metrics | {"actor/ppo_kl": -float(log_ratio.mean()) if log_ratio.numel() else 0.0}

    return loss


def advantage_estimator(objective: Objective) -> Callable[..., tuple[Tensor, Tensor]]:
    """Wrap an objective's advantages in the signature of verl's estimators; groups are rows with equal ``index``."""

    @torch.no_grad()
    def estimate(
        token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any = None, **unused: Any
    ) -> tuple[Tensor, Tensor]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for row, key in enumerate(index):
            groups[key].append(row)
        advantages = group_advantages(objective, token_level_rewards.sum(dim=-1), list(groups.values()))
        spread = advantages.unsqueeze(-1) * response_mask
        return spread, spread

    return estimate


def _check(objective: Objective, loss_agg_mode: str, weights: Tensor | None) -> None:
    expected = AGGREGATION[objective.length_normalization]
    if loss_agg_mode != expected:
        raise ConfigError(
            f"actor.loss_agg_mode = '{loss_agg_mode}' would be ignored: '{objective.name}' has length_normalization = "
            f"'{objective.length_normalization}'; set actor.loss_agg_mode={expected}"
        )
    if (weights is not None) != (getattr(objective, "truncated_is", 0.0) > 0):
        have, wanted = ("none", "token") if weights is None else ("some", "null")
        raise ConfigError(
            f"verl computed {have} importance weights and '{objective.name}' has truncated_is = "
            f"{getattr(objective, 'truncated_is', 0.0):g}: set algorithm.rollout_correction.rollout_is={wanted}, or "
            "change truncated_is"
        )


def _normalizer(objective: Objective, mask: Tensor, counts: Mapping[str, Any]) -> float:
    """Compute the step's normalizer; gradients are averaged over ranks, so its share is ``dp_size`` times larger."""
    num_sequences = counts.get("global_batch_size")
    num_tokens = counts.get("batch_num_tokens")
    total = objective.normalizer_of_counts(
        int(num_sequences if num_sequences is not None else len(mask)),
        int(num_tokens if num_tokens is not None else mask.sum()),
    )
    return total / int(counts.get("dp_size") or 1)


def _register_all() -> None:
    for name, kind in OBJECTIVES.items():
        if not (objective := kind()).needs_whole_groups:
            register(f"heliostat-{name}", objective)
    described = os.environ.get(ENVIRONMENT)
    if described:
        register("heliostat", objective_from_environment(described))


def objective_from_environment(described: str) -> Objective:
    """Build the objective described by ``{"name": ..., key: value, ...}``.

    Raises:
        ConfigError: not such a table, or an unknown name, key or value.
    """
    try:
        table = json.loads(described)
    except json.JSONDecodeError as error:
        raise ConfigError(f'{ENVIRONMENT} must be JSON like {{"name": "pmd-mean", "tau": 0.1}}: {error}') from None
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(f'{ENVIRONMENT} must be a table with a name, like {{"name": "pmd-mean"}}, got {described}')
    return build_objective(ObjectiveSection(**table))


_register_all()
