"""One environment, several algorithms and seeds, each in a process of its own, into one run folder.

Left out: the page (``heliostat.report.control_page``), and resuming: a run folder is written once.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

from heliostat.config import ConfigError, nearest
from heliostat.control.algorithms import arguments_of, described, setup_of
from heliostat.control.runs import EVALUATIONS, MODELS, SETTINGS
from heliostat.control.training_run import Row, TrainingRun, run_training
from heliostat.extras import require
from heliostat.outputs import claim_folder
from heliostat.storage import append_rows, publish_file

Settings = Mapping[str, Any]
OnProgress = Callable[[str, int, Row], None]
PACKAGES = ("heliostat", "torch", "gymnasium", "stable-baselines3", "sb3-contrib")


def race(
    env: str,
    algos: Sequence[str],
    num_steps: int,
    num_seeds: int,
    folder: Path,
    settings: Settings | None = None,
    num_processes: int | None = None,
    on_progress: OnProgress = lambda algo, seed, row: None,
) -> Path:
    """Train every algorithm on every seed and write the run folder.

    Args:
        settings: of all algorithms, over the known ones; arguments of their classes, and of SMAC's direction.
        num_processes: parallel processes; default: one per CPU of this machine.
        on_progress: called with algorithm, seed and row at every evaluation.

    Returns:
        The folder.

    Raises:
        ConfigError: an environment or setting that does not exist, or a folder that is taken; nothing was started.
    """
    settings = settings or {}
    check_race(env, algos, settings)
    if (folder / EVALUATIONS).exists():
        raise ConfigError(f"{folder} holds a run already; choose another folder with --run")
    runs = [TrainingRun(env, algo, seed, num_steps, settings) for seed in range(num_seeds) for algo in algos]
    claim_folder(folder, "heliostat control")
    (folder / MODELS).mkdir(exist_ok=True)
    about = {
        "env": env,
        "algos": list(dict.fromkeys(algos)),
        "num_seeds": num_seeds,
        "num_steps": num_steps,
        "settings": {algo: described(algo, env, settings) for algo in algos},
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    publish_file(folder / SETTINGS, json.dumps(about, indent=1, default=str) + "\n")
    context = get_context("spawn")  # forked processes inherit torch's threads in an unusable state
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(num_processes or os.cpu_count(), mp_context=context) as pool,
    ):
        rows = manager.Queue()
        running = [pool.submit(_in_process, run, rows, folder / MODELS / f"{run.algo}-{run.seed}") for run in runs]
        try:
            while not all(one.done() for one in running) or not rows.empty():
                try:
                    algo, seed, row = rows.get(timeout=0.2)
                except Empty:
                    if any(one.done() and one.exception() for one in running):
                        break
                    continue
                append_rows(folder / EVALUATIONS, [{"algo": algo, "seed": seed, **row}], sync=False)
                on_progress(algo, seed, row)
            for one in as_completed(running):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return folder


def _in_process(run: TrainingRun, rows: Any, model: Path) -> None:
    run_training(replace(run, model=model), lambda row: rows.put((run.algo, run.seed, row)))


def check_race(env: str, algos: Sequence[str], settings: Settings) -> None:
    """Refuse a race that cannot be run; nothing is written.

    Raises:
        ConfigError: an environment, algorithm or setting that does not exist, or a package that is not installed.
    """
    import gymnasium

    if env not in gymnasium.registry:
        raise ConfigError(f"gymnasium has no environment '{env}'{nearest(env, gymnasium.registry)}")
    if str(gymnasium.registry[env].entry_point).startswith("gymnasium.envs.mujoco"):
        require(f"the environment {env}", "mujoco", "mujoco")
    for algo in algos:
        try:
            arguments_of(algo, {**setup_of(algo, env).settings, **settings})
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None
