"""Policies whose actor and critic share nothing that learns, and that come back from ``policy.save`` as they were.

Stable-Baselines3's own share one feature extractor unless told otherwise, and their ``save`` does not store whether
they do: a policy with two extractors is loaded with one, which then holds the critic's weights.

Left out: networks and distributions, which are Stable-Baselines3's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import FlattenExtractor

SHARING = "share_features_extractor"


class SeparateExtractors(ActorCriticPolicy):
    """An actor-critic policy with a feature extractor each for actor and critic.

    Args:
        args, kwargs: Stable-Baselines3's.
        share_features_extractor: by default only an extractor that merely flattens, and so learns nothing, is shared.
    """

    only_flattens: ClassVar[bool] = False

    def __init__(self, *args: Any, share_features_extractor: bool | None = None, **kwargs: Any) -> None:
        if share_features_extractor is None:
            own = kwargs.get("features_extractor_class", FlattenExtractor)
            share_features_extractor = self.only_flattens and own is FlattenExtractor
        super().__init__(*args, **{**kwargs, SHARING: share_features_extractor})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._get_constructor_parameters()
        return parameters | {SHARING: self.share_features_extractor}


class MlpPolicy(SeparateExtractors):
    """Multilayer perceptrons."""

    only_flattens = True


class CnnPolicy(SeparateExtractors, ActorCriticCnnPolicy):
    """Convolutions over images."""


class MultiInputPolicy(SeparateExtractors, MultiInputActorCriticPolicy):
    """Observations that are dictionaries."""


_SEPARATE: dict[type[BasePolicy], type[BasePolicy]] = {
    ActorCriticPolicy: MlpPolicy,
    ActorCriticCnnPolicy: CnnPolicy,
    MultiInputActorCriticPolicy: MultiInputPolicy,
}


def separate_class(policy_class: type[BasePolicy]) -> type[BasePolicy]:
    """Return ours for one of Stable-Baselines3's classes, and any other class as it is."""
    return _SEPARATE.get(policy_class, policy_class)


def remember_sharing(policy: ActorCriticPolicy) -> None:
    """Let ``policy.save`` of a user's class store whether its feature extractor is shared."""
    setattr(policy, "_get_constructor_parameters", partial(_with_sharing, policy))  # noqa: B010  # of this object alone


def _with_sharing(policy: ActorCriticPolicy) -> dict[str, Any]:
    parameters: dict[str, Any] = type(policy)._get_constructor_parameters(policy)
    return {SHARING: policy.share_features_extractor} | parameters
