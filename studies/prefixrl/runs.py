"""One run of an arm from the start that all arms of a task share.

The research API does the work, with the library's prefixes. The trainer's loop is not used because many arms share one
start in memory, and because success is measured without sampling (``arena``).

Left out: which arms there are (``arms``), and what is put into groups or trained against the library's rule
(``offpolicy``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from arena import Arena, solution_row, success, supervised
from arms import Arm
from offpolicy import with_trained_prefix

from heliostat.research import Step
from heliostat.rollout import completion_seed
from heliostat.train.builders import make_feedback
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.prefixes import open_prefixes
from heliostat.types import Group

NUM_CHECKS = 8


@dataclass
class Run:
    """One arm, one rate, one seed."""

    arena: Arena
    arm: Arm
    lr: float
    seed: int

    def carry_out(self) -> dict[str, Any]:
        """Run everything from the shared start to the last update, and return a line of the results."""
        arena, arm, began = self.arena, self.arm, time.process_time()
        experiment = arena.experiment
        num_steps = experiment.opened.train.num_steps * arm.length
        experiment.restart(arena.weights, settings_of(arm, self.lr, self.seed) | {"train.num_steps": num_steps})
        experiment.ledger.charge("collection", arm.uses_traces * arena.spent_on_hard())
        if arm.objective is not None:
            experiment.updater.objective = arm.objective
        curve = [arena.check(0, 0.0)]
        supervised_steps = self._sft() if arm.sft_lr else 0
        if supervised_steps:
            curve.append(arena.check(0, time.process_time() - began))
        phases: list[dict[str, float]] = []
        check_every = num_steps // NUM_CHECKS
        for index, values in self._steps():
            phases.append(values)
            if index % check_every == 0:
                curve.append(arena.check(index, time.process_time() - began))
        return {
            **{"task": arena.task_name, "arm": arm.name, "lr": self.lr, "seed": self.seed},
            "sft_steps": supervised_steps,
            "curve": curve,
            "phases": summarise(phases, check_every),
            "ledger": {key: value for key, value in experiment.ledger.flops.items() if value},
        }

    def _steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        arena, experiment = self.arena, self.arena.experiment
        recipe = experiment.recipe
        prefixes, _ = open_prefixes(
            recipe, arena.work / "donors.json", experiment.bundle, list(experiment.tasks), experiment.pool
        )
        for index in range(recipe.train.num_steps):
            seed = completion_seed(self.seed, "step", index)
            plain = experiment.problems(index, recipe.rollout.prompts_per_step - prefixes.per_step)
            size = recipe.rollout.group_size - (self.arm.stored is not None)
            groups = experiment.sample([*plain, *prefixes.next(index)], size, seed=seed)
            prefixes.update(groups)
            norm = self._update(groups, seed).report.means.get("optim/grad_norm")
            yield index + 1, numbers(groups) | {"grad_norm": norm.value if norm else float("nan")}

    def _update(self, groups: Sequence[Group], seed: int) -> Step:
        """Make one update on the sampled groups, with a stored solution in each where the arm wants it."""
        experiment = self.arena.experiment
        if self.arm.stored is not None:
            mixed, anchors = self.arm.stored.mix(groups, self.arena.stored_traces)
            return experiment.step(mixed, seed=seed, logp_old=anchors, shuffle=False)
        if self.arm.trains_prefix:
            groups = [with_trained_prefix(group) for group in groups]
        return experiment.step(groups, seed=seed)

    def _sft(self) -> int:
        """Take supervised steps on the traces up to the best held-out success, and return their number."""
        arena, arm, experiment = self.arena, self.arm, self.arena.experiment
        texts = arena.stored_traces
        rows = [solution_row(experiment, replace(p, solution=texts[p.problem_id].text)) for p in arena.hard]
        updater = supervised(experiment, arm.sft_lr, arm.sft_steps)
        stream = ShuffledEpochs(rows, completion_seed(self.seed, "sft"))
        feedback = make_feedback(experiment.opened, experiment.bundle, ())
        best, kept, chosen = -1.0, arena.weights, 0
        for index in range(arm.sft_steps):
            updater.step(index, stream.next(index, min(32, len(rows))), feedback)
            if index % 5 == 4:
                reached = float(success(experiment, experiment.heldout).mean())
                if reached > best:
                    best, kept, chosen = reached, experiment.weights(), index + 1
        arena.loaded.model.load_state_dict(kept)
        experiment.ledger.charge_update("warm_start", arena.loaded, updater.take_counts())
        return chosen


def settings_of(arm: Arm, lr: float, seed: int) -> dict[str, Any]:
    """Return the settings in which a run differs from the study's recipe."""
    rollout = {f"rollout.{name}": value for name, value in arm.rollout.items()}
    prefix = {f"prefix.{name}": value for name, value in arm.prefix.items()}
    return {"run.seed": seed, "optimizer.lr": lr, **rollout, **prefix}


def numbers(groups: Sequence[Group]) -> dict[str, float]:
    """Of a step: groups without a success or without a failure, by prefix; success and entropy."""

    def part(name: str, chosen: Sequence[Group]) -> dict[str, float]:
        if not chosen:
            return {}
        rates = [float(np.mean([verdict.success for verdict in group.verdicts])) for group in chosen]
        entropy = np.concatenate([c.entropy for group in chosen for c in group.completions])
        return {
            f"all_fail_{name}": float(np.mean([rate == 0 for rate in rates])),
            f"all_solved_{name}": float(np.mean([rate == 1 for rate in rates])),
            f"success_{name}": float(np.mean(rates)),
            f"entropy_{name}": float(entropy.mean()),
        }

    return part("plain", [g for g in groups if not g.prompt.cut]) | part(
        "prefixed", [g for g in groups if g.prompt.cut]
    )


def summarise(phases: Sequence[dict[str, float]], length: int) -> list[dict[str, float]]:
    """Means over each stretch between checks, and the spread of the gradient's norm."""
    rows = []
    for first in range(0, len(phases), length):
        part = phases[first : first + length]
        keys = dict.fromkeys(key for values in part for key in values)
        row = {}
        for key in keys:
            seen = [values[key] for values in part if np.isfinite(values.get(key, np.nan))]
            if seen:
                row[key] = float(np.mean(seen))
            if key == "grad_norm" and seen:
                row["grad_norm_sd"] = float(np.std(seen))
        rows.append(row)
    return rows
