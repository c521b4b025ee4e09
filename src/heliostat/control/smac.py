"""SMAC: an actor-critic whose actor takes rank-1 natural-gradient steps, for Stable-Baselines3.

One actor step per rollout on the whole of it, then a few passes of the critic, as in TRPO. Everything else (rollouts,
GAE, bootstrapping at truncations, logging, saving) is Stable-Baselines3's.

Left out: clipping of the gradient's norm, which would hide the effective learning rate ``lr / damping``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from heliostat.control.actor import Actor, Observations, Rows, actions_for, taken
from heliostat.control.directions import Direction, Rank1, direction_of
from heliostat.optim.finite import SkippedStepWarning

KEPT_ROWS = 128
"""Up to this many rows a second backward pass through all of them is cheaper than a forward pass of the drawn ones."""
ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PolicyDiverged(ValueError):
    """The policy is no distribution any more: its steps were too long."""


class SMAC(OnPolicyAlgorithm):
    r"""Actor-critic with the rank-1 natural policy gradient.

        g = grad [ mean(A log pi(a|s)) + ent_coef * entropy ],    theta <- theta + lr * d

    ``d = (damping I + (1/m) sum_k u_k u_k')^-1 g`` with the scores ``u_k = grad log pi(a_k|s_k)`` of m = 16 samples
    drawn from the rollout, or any other ``direction``; the paper's has one: ``Rank1(num_scores=1, damping=1.0)``.
    Actor and critic have separate networks, feature extractors included. Arguments not listed here are
    Stable-Baselines3's.

    Args:
        learning_rate: of the actor, or its schedule; the effective one, ``lr / damping``, is logged.
        n_steps: steps per environment and rollout; one actor step is taken on all of them.
        batch_size: rows of one critic step.
        n_critic_updates: passes of the critic over each rollout.
        critic_learning_rate: of the critic (Adam; another by ``policy_kwargs={"optimizer_class": ...}``).
        normalize_advantage: to mean 0 and deviation 1 over the rollout.
        direction: ``Rank1(...)``, ``EvaLayers(...)``, ``SampleSpace(...)``, ``Gradient(...)``, ``AdamGradient(...)``,
            or the name of one with its defaults: ``rank1``, ``eva``, ``sample-space``, ``sgd``, ``adam``.

    Raises:
        ValueError: a setting out of range; networks that share parameters; an observation or reward that is NaN or
            infinite, naming the environment.
        PolicyDiverged: steps were so long that the policy is no distribution any more.

    Limits:
        see ``Rank1``; with ``direction="sgd"`` this is the policy gradient with a critic.

    References:
        Huo, Dash, Stoican, Kaski, Sun, arXiv 2601.18626 (2026). A reconstruction: known are the one-sample Fisher
        matrix, its damping and the formula; step size, critic and batch are choices made here.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.3,
        n_steps: int = 512,
        batch_size: int = 128,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        n_critic_updates: int = 10,
        critic_learning_rate: float = 1e-3,
        normalize_advantage: bool = True,
        direction: Direction | str = Rank1(),  # noqa: B008  # frozen
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=1.0,
            max_grad_norm=math.inf,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=_separate(policy, policy_kwargs or {}) | (policy_kwargs or {}),
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=ACTION_SPACES,
            _init_setup_model=False,
        )
        self.batch_size, self.n_critic_updates = batch_size, n_critic_updates
        self.critic_learning_rate, self.normalize_advantage = critic_learning_rate, normalize_advantage
        self.direction = direction_of(direction)
        self.draw_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.num_skipped = 0
        self._check()
        if _init_setup_model:
            self._setup_model()

    def _check(self) -> None:
        if self.n_steps * self.n_envs < 2 and self.env is not None:
            raise ValueError(f"n_steps * environments must be at least 2, got {self.n_steps * self.n_envs}")
        if self.batch_size < 1 or self.n_critic_updates < 0:
            raise ValueError(
                "batch_size must be at least 1 and n_critic_updates not negative, got "
                f"{self.batch_size} and {self.n_critic_updates}"
            )
        if self.direction.name == "sample-space" and self.ent_coef:
            raise ValueError("direction 'sample-space' has no entropy bonus; set ent_coef=0, or use Rank1 or EvaLayers")

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor = Actor(self.policy)
        self.actor_optimizer = self.direction.build(self.actor, self.lr_schedule(1))
        # the policy's own optimizer becomes the critic's: it is saved, and its class can be chosen, as users expect
        settings = {"lr": self.critic_learning_rate} | self.policy.optimizer_kwargs
        if self.policy.optimizer_class is torch.optim.Adam:
            settings = {"fused": True} | settings  # a fifth of the time, on networks of this size
        self.policy.optimizer = self.policy.optimizer_class(self.actor.critic_parameters, **settings)

    # -- the update -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """One actor step on the rollout, then ``n_critic_updates`` passes of the critic over it."""
        self._refuse_what_is_not_finite()
        self.policy.set_training_mode(True)
        update_learning_rate(self.actor_optimizer, self.lr_schedule(self._current_progress_remaining))

        rows, returns = self._rows()
        log_prob, entropy = self.actor.log_prob_and_entropy(rows)
        keep = len(rows) <= KEPT_ROWS
        objective = (rows.advantages * log_prob).mean()
        if self.ent_coef:  # a bonus of weight 0 would still be differentiated
            objective = objective + self.ent_coef * entropy
        self.actor_optimizer.zero_grad()
        (-objective).backward(inputs=self.actor.parameters, retain_graph=keep)  # type: ignore[no-untyped-call]
        gradient_norm = _norm(self.actor.parameters)
        if math.isfinite(gradient_norm):
            draws = np.random.default_rng((self.draw_seed, self._n_updates))
            self.direction.step(self.actor_optimizer, self.actor, rows, draws, log_prob if keep else None)
        else:
            self._skip("the policy gradient")

        value_losses = self._fit_critic(rows.observations, returns)
        self._n_updates += 1
        self._log(gradient_norm, float(entropy.detach()), value_losses)

    def _rows(self) -> tuple[Rows, Tensor]:
        """The whole rollout, advantages normalised, and its returns."""
        (data,) = self.rollout_buffer.get(batch_size=None)
        advantages = data.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return Rows(data.observations, actions_for(self.action_space, data.actions), advantages), data.returns

    def _fit_critic(self, observations: Observations, returns: Tensor) -> list[float]:
        losses = []
        for _ in range(self.n_critic_updates):
            order = torch.as_tensor(np.random.permutation(len(returns)), device=returns.device)  # noqa: NPY002
            for part in torch.split(order, self.batch_size):
                values = self.policy.predict_values(taken(observations, part)).flatten()
                loss = F.mse_loss(values, returns[part])
                self.policy.optimizer.zero_grad()
                loss.backward(inputs=self.actor.critic_parameters)  # type: ignore[no-untyped-call]
                losses.append(loss.item())
                if math.isfinite(_norm(self.actor.critic_parameters)):
                    self.policy.optimizer.step()
                else:
                    self._skip("the critic's gradient")
        return losses

    # -- what may go wrong --------------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in Stable-Baselines3; what is broken is named, where torch would complain of its consequences."""
        self._refuse_a_policy_without_distribution()
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except (ValueError, RuntimeError) as error:
            broken = _first_broken(self._last_obs)
            if broken is None:
                raise
            raise ValueError(
                f"environment {broken} gave an observation that is NaN or infinite after {self.num_timesteps} steps; "
                "nothing was learned from it"
            ) from error

    def _refuse_a_policy_without_distribution(self) -> None:
        """Weights stay finite whatever happens; the deviation is a weight's exponential, and may not."""
        if not hasattr(self.policy, "log_std"):
            return
        std = self.policy.log_std.detach().exp()
        if not bool((torch.isfinite(std) & (std > 0)).all()):
            raise PolicyDiverged(
                f"after {self.num_timesteps} steps the policy's standard deviation is out of range, its steps are too "
                f"long (learning_rate {self.actor_optimizer.param_groups[0]['lr']:g}); use a smaller learning_rate, or "
                "bound the step with direction=Rank1(max_kl=0.01)"
            )

    def _refuse_what_is_not_finite(self) -> None:
        seen = self.rollout_buffer.observations
        parts = list(seen.values()) if isinstance(seen, dict) else [seen]
        for what, values in [("a reward", self.rollout_buffer.rewards), *(("an observation", part) for part in parts)]:
            finite = np.isfinite(values)
            if not finite.all():
                step, env = np.argwhere(~finite)[0][:2]
                raise ValueError(
                    f"environment {env} gave {what} that is NaN or infinite at step {step} of the rollout that ended "
                    f"after {self.num_timesteps} steps; nothing was learned from it"
                )

    def _skip(self, what: str) -> None:
        self.num_skipped += 1
        warnings.warn(
            f"SMAC: {what} is NaN or infinite, so the step is skipped ({self.num_skipped} so far)",
            SkippedStepWarning,
            stacklevel=3,
        )

    # -- logging and saving -------------------------------------------------------------------------------------------

    def _log(self, gradient_norm: float, entropy: float, value_losses: list[float]) -> None:
        lr = self.actor_optimizer.param_groups[0]["lr"]
        record = self.logger.record
        record("train/learning_rate", lr)
        record("train/effective_learning_rate", lr / self.direction.damping)
        record("train/policy_gradient_norm", gradient_norm)
        record("train/entropy", entropy)
        if value_losses:
            record("train/value_loss", float(np.mean(value_losses)))
        buffer = self.rollout_buffer
        record("train/explained_variance", float(explained_variance(buffer.values.flatten(), buffer.returns.flatten())))
        record("train/skipped_steps", self.num_skipped + getattr(self.actor_optimizer, "num_skipped", 0))
        report = getattr(self.actor_optimizer, "report", None)
        if report is not None:
            record("train/score_square_norm", report.score_square_norm)
            record("train/step_scale", report.scale)
        if hasattr(self.policy, "log_std"):
            record("train/std", float(self.policy.log_std.detach().exp().mean()))
        record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "SMAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As every Stable-Baselines3 algorithm's."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "actor_optimizer"], []


def _separate(policy: str | type[BasePolicy], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Feature extractors of their own for actor and critic; only flattening, which learns nothing, is shared."""
    only_flattens = policy in ("MlpPolicy", ActorCriticPolicy) and "features_extractor_class" not in settings
    return {"share_features_extractor": only_flattens}


def _norm(parameters: Sequence[Tensor]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def _first_broken(observations: Any) -> int | None:
    """The first environment whose observation is not finite."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    for part in parts:
        finite = np.isfinite(np.asarray(part, dtype=np.float64)).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            return int(np.argmin(finite))
    return None
