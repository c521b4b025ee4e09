"""The actor inside a Stable-Baselines3 policy: its own parameters, its log-probabilities and their scores.

A parameter belongs to the actor if ``log pi(a|s)`` depends on it, and to the critic if the value does. Asking autograd
finds that out for any policy class, whatever its attributes are called.

Left out: steps from the scores (``directions``), and sampling actions (Stable-Baselines3's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from heliostat.cards import Card
from heliostat.curvature import per_sample_scores

Observations = Any
"""A tensor of rows, or a dictionary of such tensors where the observation space is a ``Dict``."""


@dataclass(frozen=True, slots=True, repr=False)
class Transitions(Card):
    """Some time steps of a rollout.

    Attributes:
        observations: first index: time step.
        actions: as the distribution takes them: integers [row] for ``Discrete``, else [row, component].
        advantages: [row].
    """

    observations: Observations
    actions: Tensor
    advantages: Float[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, index: Int[Tensor, ...]) -> Transitions:
        """Select the rows at ``index``."""
        return Transitions(taken(self.observations, index), self.actions[index], self.advantages[index])


def taken(observations: Observations, index: Tensor) -> Observations:
    """Select the observations at ``index``."""
    if isinstance(observations, dict):
        return {name: part[index] for name, part in observations.items()}
    return observations[index]


class Actor:
    """The part of a policy that chooses actions.

    Attributes:
        names: the actor's parameters, by their names in the policy.
        critic_parameters: those of the value function.

    Raises:
        ValueError: a trainable parameter serves both; one of the two has none.

    Limits:
        Parameters that do not require a gradient when this is built belong to neither; ``is_current`` notices a change.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._built_on = _trainability(policy)
        named = dict(policy.named_parameters())
        with evaluation_mode(policy), distribution_kept(policy):  # one observation has no batch statistics
            seen = policy.obs_to_tensor(policy.observation_space.sample())[0]
            distribution = policy.get_distribution(seen)
            reached = _reached(distribution.log_prob(distribution.mode()).sum(), named)
            valued = _reached(policy.predict_values(seen).sum(), named)
        for part, found in (("log-probability", reached), ("value", valued)):
            if not found:
                raise ValueError(f"the policy's {part} depends on no trainable parameter, so there is nothing to train")
        if shared := [name for name in reached if name in valued]:
            raise ValueError(
                f"actor and critic share '{shared[0]}' ({len(shared)} parameters): the value's gradient would enter "
                "the policy's; use policy_kwargs={'share_features_extractor': False} and separate networks"
            )
        self.names = tuple(reached)
        self.parameters = [named[name] for name in reached]
        self.critic_parameters = [named[name] for name in valued]
        space = policy.observation_space
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        # numbers of a discrete observation become one-hot rows, which torch does not vectorise
        self._vectorises = not any(isinstance(part, spaces.Discrete | spaces.MultiDiscrete) for part in parts)
        modules = list(policy.modules())
        self.has_batch_statistics = any(isinstance(module, _BatchNorm) for module in modules)
        self.differs_in_training = any(isinstance(module, _BatchNorm | _DropoutNd) for module in modules)

    def is_current(self, policy: ActorCriticPolicy) -> bool:
        """Whether the policy still has the parameters, frozen and trainable, that this was built on."""
        now = _trainability(policy)
        return len(now) == len(self._built_on) and all(
            p is q and trains == trained for (p, trains), (q, trained) in zip(now, self._built_on, strict=True)
        )

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """List names and parameters, in the policy's order."""
        return list(zip(self.names, self.parameters, strict=True))

    def layers(self) -> nn.Module:
        """Collect the actor's modules and stray parameters in one module, for optimizers that hook layers."""
        own = {id(parameter) for parameter in self.parameters}
        parts = nn.ModuleList()
        covered: set[int] = set()
        for module in self.policy.modules():
            direct = {id(parameter) for parameter in module.parameters(recurse=False)}
            if direct and direct <= own and not list(module.children()):
                parts.append(module)
                covered |= direct
        strays = nn.ParameterList([p for p in self.parameters if id(p) not in covered])
        return nn.ModuleDict({"parts": parts, "strays": strays})

    def log_prob(self, rows: Transitions) -> Float[Tensor, " row"]:
        """Compute ``log pi(a|s)`` of each row, with its graph."""
        log_prob: Tensor = self.policy.get_distribution(rows.observations).log_prob(rows.actions)
        return log_prob

    def log_prob_and_entropy(self, rows: Transitions) -> tuple[Float[Tensor, " row"], Float[Tensor, ""]]:
        """Compute ``log pi(a|s)`` of each row and the mean entropy; without a closed form, minus the mean log pi."""
        with unvalidated():  # the gradient check finds non-finite values
            distribution = self.policy.get_distribution(rows.observations)
            log_prob = distribution.log_prob(rows.actions)
            entropy = distribution.entropy()
        return log_prob, -log_prob.mean() if entropy is None else entropy.mean()

    def acting_log_prob(self, rows: Transitions) -> Float[Tensor, " row"]:
        """Compute ``log pi(a|s)`` of the acting policy: with BatchNorm's running statistics, without Dropout."""
        with evaluation_mode(self.policy), unvalidated():
            return self.log_prob(rows)

    def scores(self, rows: Transitions) -> dict[Tensor, Float[Tensor, "row ..."]]:
        """Compute ``u_i = grad log pi(a_i|s_i)`` of every row, by parameter, in one vectorised pass if possible.

        The policy is the one that acts: a row's log-probability must depend on that row alone.

        Limits:
            Their mean is the gradient of the mean log-probability.
        """
        with evaluation_mode(self.policy):
            return self._scores(rows)

    def _scores(self, rows: Transitions) -> dict[Tensor, Float[Tensor, "row ..."]]:
        if not self._vectorises:
            each = [torch.autograd.grad(one, self.parameters, retain_graph=True) for one in self.log_prob(rows)]
            return {p: torch.stack(scores) for p, scores in zip(self.parameters, zip(*each, strict=True), strict=True)}
        model, index = _RowLogProb(self, rows), torch.arange(len(rows), device=rows.actions.device)
        with unvalidated():
            found = per_sample_scores(
                model, index, index, log_prob=_as_is, only={f"policy.{name}" for name in self.names}
            )
        return {p: found[f"policy.{name}"] for name, p in self.named_parameters()}


class _RowLogProb(nn.Module):
    """A map from the number of a row to its log-probability, which can be vectorised for any observation space."""

    def __init__(self, actor: Actor, rows: Transitions) -> None:
        super().__init__()
        self.policy, self.actor, self.rows = actor.policy, actor, rows

    def forward(self, index: Tensor) -> Tensor:
        return self.actor.log_prob(self.rows.take(index))


def _as_is(output: Tensor, label: Tensor) -> Tensor:
    return output


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """Put the policy in evaluation mode inside the block, and restore its mode after it."""
    training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(training)


@contextmanager
def distribution_kept(policy: ActorCriticPolicy) -> Iterator[None]:
    """Restore the policy's distribution after the block: a graph or a vectorised tensor in it cannot be copied."""
    distribution = policy.action_dist
    before = dict(vars(distribution))
    try:
        yield
    finally:
        vars(distribution).clear()
        vars(distribution).update(before)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Turn off the argument checks of ``torch.distributions``, which branch on data and so cannot be vectorised."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def actions_for(space: spaces.Space[Any], actions: Tensor) -> Tensor:
    """Convert a rollout buffer's actions (floats) to the form that the policy's distribution takes."""
    return actions.long().flatten() if isinstance(space, spaces.Discrete) else actions


def _reached(output: Tensor, named: Mapping[str, Tensor]) -> list[str]:
    """List the trainable parameters that ``output`` depends on."""
    if not output.requires_grad:
        return []
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    found = torch.autograd.grad(output, list(trainable.values()), allow_unused=True)
    return [name for name, gradient in zip(trainable, found, strict=True) if gradient is not None]


def _trainability(policy: nn.Module) -> list[tuple[Tensor, bool]]:
    return [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
