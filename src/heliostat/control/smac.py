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
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from heliostat.control.actor import Actor, Observations, Transitions, actions_for, distribution_kept, taken
from heliostat.control.directions import Direction, Rank1, direction_of
from heliostat.control.loading import check_keywords
from heliostat.control.optimizer_state import carry_state, fits, fused_where_possible, let_go, take_settings
from heliostat.control.policies import (
    SHARING,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SeparateExtractors,
    remember_sharing,
    separate_class,
)
from heliostat.optim.base.optimizer import SkippedStepWarning

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
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
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
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=ACTION_SPACES,
            _init_setup_model=False,
        )
        self.batch_size, self.n_critic_updates = batch_size, n_critic_updates
        self.critic_learning_rate, self.normalize_advantage = critic_learning_rate, normalize_advantage
        self.direction = direction_of(direction)
        self.num_skipped = 0
        if _init_setup_model:
            self._setup_model()

    # -- making its parts -------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self.direction = direction_of(self.direction)  # ``load`` may have been given a name
        self._check()
        kept = self.__dict__.get("draw_seed")
        self._make_policy()
        self.draw_seed = kept if kept is not None else self.__dict__.get("draw_seed", _seed_of(None))
        self._make_optimizers()

    def _check(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {self.n_steps}")
        if self.batch_size < 1 or self.n_critic_updates < 0:
            raise ValueError(
                "batch_size must be at least 1 and n_critic_updates not negative, got "
                f"{self.batch_size} and {self.n_critic_updates}"
            )
        if self.direction.name == "sample-space" and self.ent_coef:
            raise ValueError("direction 'sample-space' has no entropy bonus; set ent_coef=0, or use Rank1 or EvaLayers")

    def _make_policy(self) -> None:
        """Build the policy as Stable-Baselines3 does, with separate feature extractors unless the user chooses."""
        self.policy_class = separate_class(self.policy_class)
        if issubclass(self.policy_class, SeparateExtractors) or SHARING in self.policy_kwargs:
            super()._setup_model()
            return
        given = self.policy_kwargs
        try:
            self.policy_kwargs = {**given, SHARING: False}
            super()._setup_model()
            remember_sharing(self.policy)
        except TypeError as error:
            if SHARING not in str(error):
                raise
            self.policy_kwargs = given  # the class decides for itself
            super()._setup_model()
        finally:
            self.policy_kwargs = given

    def _make_optimizers(self) -> None:
        self.actor = Actor(getattr(self.policy, "_orig_mod", self.policy))
        if self.actor.has_batch_statistics and self.n_steps * self.n_envs < 2:
            raise ValueError(
                "BatchNorm needs at least 2 rows a rollout; set n_steps or the number of environments to 2"
            )
        self.actor_optimizer = self._new_actor_optimizer()
        # the policy's own optimizer becomes the critic's: it is saved, and its class can be chosen, as users expect
        self.policy.optimizer = self._new_critic_optimizer()

    def _new_actor_optimizer(self) -> torch.optim.Optimizer:
        return self.direction.build(self.actor, self.lr_schedule(1))

    def _new_critic_optimizer(self) -> torch.optim.Optimizer:
        settings = {"lr": self.critic_learning_rate, **self.policy.optimizer_kwargs}
        kind: type[torch.optim.Optimizer] = self.policy.optimizer_class
        return kind(self.actor.critic_parameters, **fused_where_possible(kind, settings))

    def _follow_the_policy(self) -> None:
        """Notice parameters that were frozen, unfrozen or replaced, and keep the state of those that stayed."""
        if self.actor.is_current(self.policy):
            return
        actors, critics = self.actor_optimizer, self.policy.optimizer
        let_go(actors)
        self._make_optimizers()
        carry_state(actors, self.actor_optimizer)
        carry_state(critics, self.policy.optimizer)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Set the seed as Stable-Baselines3 does; the draws of scores follow it too."""
        super().set_random_seed(seed)
        if seed is not None:
            self.draw_seed = _seed_of(seed)

    # -- the update -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Take one actor step on the rollout, then ``n_critic_updates`` passes of the critic over it."""
        self._refuse_what_is_not_finite()
        self._follow_the_policy()
        self.policy.set_training_mode(True)
        with distribution_kept(self.policy):
            self._update()

    def _update(self) -> None:
        update_learning_rate(self.actor_optimizer, self.lr_schedule(self._current_progress_remaining))

        rows, returns = self.transitions()
        log_prob, entropy = self.actor.log_prob_and_entropy(rows)
        keep = len(rows) <= KEPT_ROWS and not self.actor.differs_in_training
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

    def transitions(self) -> tuple[Transitions, Tensor]:
        """Return the whole rollout, with normalised advantages, and its returns."""
        (data,) = self.rollout_buffer.get(batch_size=None)
        advantages = data.advantages
        if self.normalize_advantage and len(advantages) > 1:  # one has no deviation
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return Transitions(data.observations, actions_for(self.action_space, data.actions), advantages), data.returns

    def _fit_critic(self, observations: Observations, returns: Tensor) -> list[float]:
        losses = []
        for _ in range(self.n_critic_updates):
            order = torch.as_tensor(np.random.permutation(len(returns)), device=returns.device)  # noqa: NPY002
            for part in self.minibatches(order):
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

    def minibatches(self, order: Tensor) -> Sequence[Tensor]:
        """Split rows into parts of ``batch_size``, or of a few more where BatchNorm would get a single row."""
        parts = torch.split(order, self.batch_size)
        if not self.actor.has_batch_statistics or min(map(len, parts)) > 1:
            return parts
        return order.tensor_split(max(1, len(order) // max(2, self.batch_size)))

    # -- what may go wrong --------------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect rollouts as Stable-Baselines3 does; a non-finite observation or reward is named as such."""
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
        """Refuse a deviation that is not finite: it is the exponential of a weight, which may stay finite itself."""
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
        """Train as every Stable-Baselines3 algorithm does."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor"]

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Return the parameters as Stable-Baselines3 does; the actor's optimizer names the direction of its state."""
        parameters: dict[str, dict[str, Any]] = super().get_parameters()
        parameters["actor_optimizer"] = {**parameters["actor_optimizer"], "direction": self.direction.name}
        return parameters

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Set the parameters as Stable-Baselines3 does; state of another direction is left out, with a warning."""
        given: Any = load_path_or_dict
        if not isinstance(given, dict):
            given = load_from_zip_file(given, device=device, load_data=False)[1]
        super().set_parameters({**given, **self._replacing_what_does_not_fit(given)}, exact_match, device)

    def _replacing_what_does_not_fit(self, given: Mapping[str, Any]) -> dict[str, Any]:
        own = {"actor_optimizer": self.actor_optimizer, "policy.optimizer": self.policy.optimizer}
        replaced = {}
        for name, optimizer in own.items():
            saved = given.get(name)
            if not isinstance(saved, dict) or "param_groups" not in saved:
                continue  # Stable-Baselines3 and torch refuse it
            direction = saved.get("direction", self.direction.name)
            if direction != self.direction.name or not fits(saved, optimizer):
                what = f"direction '{direction}'" if direction != self.direction.name else "other trainable parameters"
                warnings.warn(
                    f"the given state of {name} belongs to {what}: the weights are taken, this optimizer starts anew",
                    stacklevel=4,
                )
                replaced[name] = optimizer.state_dict()
        return replaced

    @classmethod
    def load(
        cls,
        path: Any,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a model as Stable-Baselines3 does; settings given here hold, and state is the file's where it fits.

        Raises:
            TypeError: a keyword is neither a setting nor anything else that the file holds.

        Warns:
            UserWarning: another ``direction`` than the file's; its optimizer starts anew.
        """
        check_keywords(cls, path, kwargs, custom_objects)
        model: Self = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        given = {**(custom_objects or {}), **kwargs}
        if given.keys() & {"direction", "learning_rate", "lr_schedule"}:
            fresh = model._new_actor_optimizer()
            take_settings(model.actor_optimizer, fresh)
            let_go(fresh)
        if "critic_learning_rate" in given:
            take_settings(model.policy.optimizer, model._new_critic_optimizer())
        if given.get("seed") is not None:
            model.set_random_seed(given["seed"])
        return model

    def _maybe_recommend_cpu(self, mlp_class_name: str = MlpPolicy.__name__) -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "actor_optimizer"], []


def _seed_of(seed: int | None) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _norm(parameters: Sequence[Tensor]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def _first_broken(observations: Any) -> int | None:
    """Find the first environment whose observation is not finite."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    for part in parts:
        finite = np.isfinite(np.asarray(part, dtype=np.float64)).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            return int(np.argmin(finite))
    return None
