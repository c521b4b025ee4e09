"""One algorithm, one environment, one seed: training with the same evaluation for all algorithms, as rows of metrics.

The deterministic policy is evaluated on an environment of its own at ``num_evals`` regular steps. CPU seconds are the
process's, evaluation left out; an update's are those between the end of a rollout and the start of the next.

Left out: parallel runs (``race``), and statistics of the rows (``runs``).
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from heliostat.control.algorithms import algorithm_class, arguments_of, setup_of
from heliostat.storage import publish_file

EVAL_SEED = 10_000
Row = dict[str, float]
OnRow = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One training run: algorithm, environment, seed and settings.

    Attributes:
        settings: over those of ``algorithms``.
        model: file for the trained model; ``None``: it is not saved.
        num_evals: evaluations on the way, the last one at the end.
    """

    env: str
    algo: str
    seed: int
    num_steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None
    num_evals: int = 20
    num_episodes: int = 10


class _Stopwatch(BaseCallback):
    """A callback that evaluates at regular steps and counts CPU seconds between evaluations."""

    def __init__(self, run: TrainingRun, env: VecEnv, on_row: OnRow) -> None:
        super().__init__()
        self.run, self.eval_env, self.on_row = run, env, on_row
        self.rows: list[Row] = []
        self.update_s, self.away_s, self.num_updates = 0.0, 0.0, 0
        self.rollout_ended: float | None = None

    def _on_training_start(self) -> None:
        self.began = time.process_time()
        self._evaluate()

    def _on_rollout_start(self) -> None:
        if self.rollout_ended is not None:
            self.update_s += time.process_time() - self.rollout_ended
            self.num_updates += 1
        if self.num_timesteps >= len(self.rows) * self.run.num_steps / self.run.num_evals:
            self._evaluate()

    def _on_rollout_end(self) -> None:
        self.rollout_ended = time.process_time()

    def _on_training_end(self) -> None:
        self._on_rollout_start()
        if self.rows[-1]["step"] < self.num_timesteps:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _evaluate(self) -> None:
        began = time.process_time()
        training = self.model.get_vec_normalize_env()
        if training is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        mean = evaluate_policy(self.model, self.eval_env, self.run.num_episodes, warn=False)[0]
        assert not isinstance(mean, list)
        recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        row = {
            "step": self.num_timesteps,
            "return": float(mean),
            "cpu_s": began - self.began - self.away_s,
            "update_s": self.update_s,
            "num_updates": self.num_updates,
        }
        row |= {"train_return": float(sum(recent) / len(recent))} if recent else {}
        self.rows.append(row)
        self.away_s += time.process_time() - began
        self.on_row(row)


def save_model(model: Any, env: VecEnv, path: Path) -> None:
    """Publish Stable-Baselines3's files (``model.zip``, ``model.normalize.pkl``) whole."""
    written = io.BytesIO()
    model.save(written)
    publish_file(path.with_name(f"{path.name}.zip"), written.getvalue())
    if isinstance(env, VecNormalize):
        publish_file(path.with_name(f"{path.name}.normalize.pkl"), pickle.dumps(env))


def run_training(run: TrainingRun, on_row: OnRow = lambda row: None) -> list[Row]:
    """Train and evaluate; return one row per evaluation.

    Returns:
        Rows with ``step``, ``return`` (mean of ``num_episodes`` episodes of the deterministic policy),
        ``train_return`` (mean of the last training episodes), ``cpu_s``, ``update_s`` and ``num_updates``.

    Raises:
        ValueError: unknown algorithm or setting.
    """
    torch.set_num_threads(1)
    setup = setup_of(run.algo, run.env)
    arguments = arguments_of(run.algo, {**setup.settings, **run.settings})
    env: VecEnv = make_vec_env(run.env, setup.num_envs, seed=run.seed)
    eval_env: VecEnv = make_vec_env(run.env, min(5, run.num_episodes), seed=EVAL_SEED + run.seed)
    if setup.normalize:
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99))
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
    policy = "MultiInputPolicy" if hasattr(env.observation_space, "spaces") else "MlpPolicy"
    model = algorithm_class(run.algo)(policy=policy, env=env, seed=run.seed, device="cpu", **arguments)
    watch = _Stopwatch(run, eval_env, on_row)
    model.set_logger(Logger(folder=None, output_formats=[]))  # by default, a folder in the system's temporary one
    model.learn(run.num_steps, callback=watch, log_interval=None)  # type: ignore[arg-type]
    if run.model is not None:
        save_model(model, env, run.model)
    env.close()
    eval_env.close()
    return watch.rows
