"""One run of an arm from the start that all arms of a task share.

The library's own parts do the work: engine, verifiers, prefixes, objectives, update phase, ledger. The trainer's loop
is not used because many arms share one start in memory, and because success is measured without sampling (``arena``).

Left out: which arms there are (``arms``), and what is put into groups or trained against the library's rule
(``offpolicy``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from arena import Arena, demonstration, supervised
from arms import Arm
from offpolicy import with_trained_prefix

from heliostat.config import Recipe
from heliostat.objectives import build_objective
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.builders import make_feedback, make_updater
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.prefixes import open_prefixes
from heliostat.train.update.updater import Updater, UpdateReport, make_batch
from heliostat.types import Group

NUM_CHECKS = 8


@dataclass
class Run:
    """One arm, one rate, one seed."""

    arena: Arena
    arm: Arm
    lr: float
    seed: int
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.recipe = arm_recipe(self.arena.recipe, self.arm, self.lr, self.seed)

    def carry_out(self) -> dict[str, Any]:
        """Everything from the shared start to the last update, as a line of the results."""
        arena, arm, began = self.arena, self.arm, time.process_time()
        arena.loaded.model.load_state_dict(arena.weights)
        self.ledger.charge("collection", arm.uses_traces * arena.spent_on_hard())
        objective = arm.objective or build_objective(self.recipe.objective)
        updater = make_updater(self.recipe, arena.bundle, objective, arena.runtime)
        curve = [arena.check(0, self.ledger, 0.0)]
        supervised_steps = self._sft() if arm.sft_lr else 0
        if supervised_steps:
            curve.append(arena.check(0, self.ledger, time.process_time() - began))
        arena.bundle.engine.take_counts()
        phases: list[dict[str, float]] = []
        check_every = self.recipe.train.num_steps // NUM_CHECKS
        for step, values in self._steps(updater):
            phases.append(values)
            if step % check_every == 0:
                curve.append(arena.check(step, self.ledger, time.process_time() - began))
        return {
            **{"task": arena.task_name, "arm": arm.name, "lr": self.lr, "seed": self.seed},
            "sft_steps": supervised_steps,
            "curve": curve,
            "phases": summarise(phases, check_every),
            "ledger": {key: value for key, value in self.ledger.flops.items() if value},
        }

    def _steps(self, updater: Updater) -> Iterator[tuple[int, dict[str, float]]]:
        arena, recipe, arm = self.arena, self.recipe, self.arm
        prompts_per_step, seed = recipe.rollout.prompts_per_step, recipe.run.seed
        bundle = replace(arena.bundle, recipe=recipe)
        prefixes, _ = open_prefixes(recipe, arena.work / "donors.json", bundle, arena.tasks, arena.pool)
        problems = ShuffledEpochs(arena.hard, seed)
        for step in range(recipe.train.num_steps):
            drawn = completion_seed(seed, "step", step)
            plain = problems.next(step, prompts_per_step - prefixes.per_step)
            prompts = [bundle.prompt(problem) for problem in plain] + prefixes.next(step)
            size = recipe.rollout.group_size - (arm.stored is not None)
            groups = bundle.engine.sample(
                SampleRequest(prompts, size, SamplingSettings(), seed=drawn, policy_step=step)
            )
            self.ledger.charge_rollout("rollout", arena.loaded, bundle.engine.take_counts())
            groups = arena.pool.verify(groups)
            prefixes.update(groups)
            report = self._update(updater, groups, step, drawn)
            self.ledger.charge_update("update", arena.loaded, report.counts)
            norm = report.means.get("optim/grad_norm")
            yield step + 1, numbers(groups) | {"grad_norm": norm.value if norm else float("nan")}

    def _update(self, updater: Updater, groups: Sequence[Group], step: int, seed: int) -> UpdateReport:
        """One update on what was sampled, with a stored solution in every group where the arm wants it."""
        if self.arm.stored is not None:
            batch = self.arm.stored.mix(groups, self.arena.stored_traces, updater.objective)
            report = UpdateReport()
            report.lr = updater.schedule.set_lr(updater.safe_step.optimizer, step)
            updater._step(batch, batch, False, report, (seed, 0))
            return report
        if self.arm.trains_prefix:
            groups = [with_trained_prefix(group) for group in groups]
        return updater.run(make_batch(updater.objective, groups), 1, step, seed)

    def _sft(self) -> int:
        """Supervised steps on the traces, stopped where held-out success was best; returns their number."""
        arena, arm = self.arena, self.arm
        loaded, texts = arena.loaded, arena.stored_traces
        rows = [demonstration(loaded, replace(p, solution=texts[p.problem_id].text)) for p in arena.hard]
        updater = supervised(loaded, arm.sft_lr, arm.sft_steps, arena.runtime)
        stream = ShuffledEpochs(rows, completion_seed(self.seed, "sft"))
        feedback = make_feedback(arena.recipe, arena.bundle, ())
        best, kept, chosen = -1.0, arena.weights, 0
        for index in range(arm.sft_steps):
            updater.step(index, stream.next(index, min(32, len(rows))), feedback)
            if index % 5 == 4:
                reached = float(arena.success(loaded, arena.heldout).mean())
                if reached > best:
                    best, kept, chosen = reached, copy.deepcopy(loaded.model.state_dict()), index + 1
        loaded.model.load_state_dict(kept)
        self.ledger.charge_update("warm_start", loaded, updater.take_counts())
        return chosen


def arm_recipe(recipe: Recipe, arm: Arm, lr: float, seed: int) -> Recipe:
    """The study's recipe with an arm's settings."""
    data = recipe.model_dump()
    data["run"]["seed"] = seed
    data["optimizer"]["lr"] = lr
    data["rollout"] |= arm.rollout
    data["train"]["num_steps"] *= arm.length
    data["prefix"] = {"name": "none", **arm.prefix}
    return Recipe.model_validate(data)


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
