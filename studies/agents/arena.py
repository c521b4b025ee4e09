"""One run of an arm from its world's shared start, on the research API.

The trainer's loop is not used because all arms of a world share one start in memory, and one environment process.

Left out: which arms there are (``arms``) and what came of them (``page``).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from arms import MINIBATCH_PROMPTS, NUM_UPDATES, Run
from worlds import recipe_of, start_of

from heliostat.research import Experiment, Step, TrainingDiverged, open_experiment
from heliostat.rollout import completion_seed
from heliostat.train.update.mirror_metrics import sequence_log_ratios
from heliostat.types import Group

NUM_MEASURED = 16  # groups whose log-ratios are measured after a phase


@dataclass
class Arena(AbstractContextManager["Arena"]):
    """A world with its environment process and the weights of its start.

    Attributes:
        before: held-out success of the start.
    """

    work: Path
    world: str
    slips: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        start = start_of(self.world, self.work, self.slips)
        changes = {"model.path": str(start), "model.settings": {}, **self.changes}
        self.experiment: Experiment = self.stack.enter_context(open_experiment(recipe_of(self.world, changes)))
        self.weights = self.experiment.weights()
        self.before = self.success()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    def carry_out(self, run: Run) -> dict[str, Any]:
        """Make one run from the shared start; one that diverges is judged by the weights it has reached."""
        experiment, started = self.experiment, time.process_time()
        experiment.restart(self.weights, settings_of(run))
        phases: list[dict[str, float]] = []
        status = "finished"
        try:
            for index in range(experiment.recipe.train.num_steps):
                phases.append(self.phase(run, index))
        except TrainingDiverged:
            status = "diverged"
        flops = experiment.ledger.spent
        return {
            **run.key,
            "status": status,
            "before": self.before,
            "after": self.success(),
            "phases": phases,
            "flops": flops,
            "cpu_s": round(time.process_time() - started, 2),
        }

    def phase(self, run: Run, index: int) -> dict[str, float]:
        """Sample a batch, make its updates, and measure how far they went."""
        experiment = self.experiment
        num = MINIBATCH_PROMPTS * run.arm.updates_per_batch
        problems = experiment.problems(index, num, seed=completion_seed(run.seed, "problems"))
        groups = experiment.sample(problems, seed=completion_seed(run.seed, "phase", index))
        step = experiment.step(groups, seed=completion_seed(run.seed, "order", index))
        return numbers(groups) | self.distance(step)

    def distance(self, step: Step) -> dict[str, float]:
        """Measure the log-ratios of trajectories after a phase: their mean, spread, and both classes."""
        experiment = self.experiment
        budget = experiment.recipe.train.tokens_per_microbatch
        runtime = experiment.runtime
        s, _, success = sequence_log_ratios(experiment.policy, step.batch, NUM_MEASURED, budget, runtime)
        found = {"s_mean": s.mean(), "s_rms": np.sqrt(np.mean(s**2)), "s_max": np.abs(s).max()}
        for name, members in (("right", success), ("wrong", ~success)):
            if members.any():
                found[f"s_{name}"] = s[members].mean()
        return {key: float(f"{value:.5g}") for key, value in found.items()}

    def success(self) -> float:
        """Measure held-out success; always with the same random streams."""
        return float(self.experiment.evaluate(greedy=False).pass_at_1)


def settings_of(run: Run) -> dict[str, Any]:
    """Return a run's settings: objective, batch, and a learning rate that falls to 0 over the run's updates."""
    count = run.arm.updates_per_batch
    return {
        "objective.name": run.arm.objective,
        **{f"objective.{name}": value for name, value in run.arm.settings.items()},
        "optimizer.lr": run.lr,
        "train.num_steps": NUM_UPDATES // count,
        "train.updates_per_step": count,
        "rollout.prompts_per_step": count * MINIBATCH_PROMPTS,
    }


def numbers(groups: Sequence[Group]) -> dict[str, float]:
    """Return success, turns, sampled tokens and entropy of a phase's episodes."""
    completions = [completion for group in groups for completion in group.completions]
    entropy = np.concatenate([completion.entropy for completion in completions])
    found = {
        "success": np.mean([verdict.success for group in groups for verdict in group.verdicts]),
        "turns": np.mean([len(completion.turns) for completion in completions]),
        "tokens": np.mean([completion.num_sampled for completion in completions]),
        "entropy": entropy.mean(),
    }
    return {key: float(f"{value:.5g}") for key, value in found.items()}


def children_s() -> float:
    """Return the CPU seconds of finished environment processes."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
