"""One run of an arm, with the library's own parts: its engine, verifiers, objectives, update phase and ledger.

The trainer's loop is not used because a study needs what a run should not have: rollouts that are stale on purpose,
a start that many arms share in memory, and success measured without sampling. Answers here are a few tokens long and
there is one right one, so the success rate of a problem *is* the probability of that answer: no evaluation noise.

Left out: which arms there are (``arms``) and what came of them (``analysis``).
"""

from __future__ import annotations

import copy
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import NUM_UPDATES, Run

from heliostat import sft
from heliostat.config import Recipe, load_recipe
from heliostat.objectives import build_objective
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.tasks import Task, VerifierPool
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.builders import make_updater
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.demonstrations import demonstration
from heliostat.train.distributed.ranks import Runtime, start_runtime
from heliostat.train.logprobs.packing import microbatches
from heliostat.train.logprobs.policy import Policy
from heliostat.train.model_bundle import ModelBundle, set_up_model
from heliostat.train.update.mirror_metrics import mirror_means, rollout_means, sequence_log_ratios
from heliostat.train.update.safe_step import TrainingDiverged
from heliostat.train.update.updater import Updater, UpdateReport, make_batch
from heliostat.types import Batch, Group, Problem, mean_values

RECIPE = Path(__file__).with_name("recipe.toml")
STARTS = {"low": 0.2, "high": 0.6, "dotted-low": 0.2, "dotted-high": 0.6}  # success that the warm start stops at
CHECKS = 4  # evaluations during a run, evenly spaced, the last at its end
TOKENS = 16384  # of one forward


@dataclass
class Arena(AbstractContextManager["Arena"]):
    """What the runs of one start share: problems, verifier processes, and the warm-started weights."""

    work: Path
    start: str
    changes: dict[str, Any] = field(default_factory=dict)  # to the recipe, by dotted names
    runtime: Runtime = field(init=False)

    def __enter__(self) -> Arena:
        self.recipe = start_recipe(self.work, self.start, self.changes)
        self.runtime = start_runtime(self.recipe.run)
        self.tasks: list[Task] = load_tasks(self.recipe)
        warm = sft(self.recipe, run_dir=self.work / f"start-{self.start}").folder / "model"
        self.bundle: ModelBundle = set_up_model(with_model(self.recipe, warm), self.runtime)
        self.weights = copy.deepcopy(self.bundle.loaded.model.state_dict())
        self.pool = VerifierPool(self.tasks).__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.pool.__exit__(*problem)

    def carry_out(self, run: Run) -> dict[str, Any]:
        """One run from the shared start; one that diverges keeps what it reached."""
        self.bundle.loaded.model.load_state_dict(self.weights)
        recipe = arm_recipe(self.recipe, run)
        updater = make_updater(recipe, self.bundle, build_objective(recipe.objective), self.runtime)
        updater.anchor_from_sampler = run.arm.anchor == "sampler"
        ledger, done, first, last, status = Ledger(), 0, None, {}, "finished"
        self.bundle.engine.take_counts()
        curve, spent_s = [self.check(0, ledger, 0.0)], 0.0
        phases = self.phases(run, updater, ledger)
        try:
            while done < NUM_UPDATES:
                started = time.process_time()
                done, last = next(phases)
                spent_s += time.process_time() - started
                first = first or last
                if done < NUM_UPDATES and done * CHECKS // NUM_UPDATES >= len(curve):
                    curve.append(self.check(done, ledger, spent_s))
        except TrainingDiverged:
            status = "diverged"
        curve.append(self.check(done, ledger, spent_s))
        return {**run.key, "status": status, "curve": curve, "first": first, "last": last}

    def phases(self, run: Run, updater: Updater, ledger: Ledger) -> Iterator[tuple[int, dict[str, float]]]:
        """Rollouts and updates in turn; yields the number of updates made and what the last phase did."""
        done, count = 0, run.arm.updates_per_batch
        phase = phase_lagged if run.arm.lag else Updater.run
        for groups in self.rollouts(run, ledger):
            batch = make_batch(updater.objective, groups)
            report = phase(updater, batch, count, done, completion_seed(run.seed, "order", done))
            ledger.charge_update("update", self.bundle.loaded, report.counts)
            done += count
            yield done, {**self.numbers(updater, batch), "optim/bad_steps": float(report.bad_steps)}

    def rollouts(self, run: Run, ledger: Ledger) -> Iterator[list[Group]]:
        """The graded groups of every phase in turn; with a lag, each waits that many updates before its own."""
        count = run.arm.updates_per_batch
        num_prompts = count * run.arm.prompts_per_minibatch
        problems = ShuffledEpochs(self.tasks[0].train, completion_seed(run.seed, "problems"))
        waiting: deque[list[Group]] = deque()
        for index in range(NUM_UPDATES // count):
            seed = completion_seed(run.seed, "phase", index)
            waiting.append(self.sample(problems.next(index, num_prompts), run.arm.group_size, seed, ledger))
            if len(waiting) > run.arm.lag:
                yield waiting.popleft()
        yield from waiting

    def sample(self, problems: list[Problem], group_size: int, seed: int, ledger: Ledger) -> list[Group]:
        prompts = [self.bundle.prompt(problem) for problem in problems]
        groups = self.bundle.engine.sample(
            SampleRequest(prompts, group_size, SamplingSettings(), seed=seed, policy_step=0)
        )
        ledger.charge_rollout("rollout", self.bundle.loaded, self.bundle.engine.take_counts())
        return self.pool.verify(groups)

    def check(self, done: int, ledger: Ledger, cpu_s: float) -> dict[str, float]:
        """Exact success on the held-out problems and on as many training problems, and what it has cost so far."""
        task = self.tasks[0]
        return {
            "updates": done,
            "heldout": self.success(task.heldout),
            "train": self.success(task.train[: len(task.heldout)]),
            "flops": ledger.flops["rollout"] + ledger.flops["update"],
            "cpu_s": cpu_s,
        }

    @torch.no_grad()
    def success(self, problems: tuple[Problem, ...]) -> float:
        """Mean probability of the right answer."""
        rows = [
            replace(
                demonstration(self.bundle.loaded, self.bundle.prompt(problem), problem.solution or ""), group=number
            )
            for number, problem in enumerate(problems)
        ]
        policy, total = Policy(self.bundle.loaded, temperature=1.0, shared_prompt=False), 0.0
        for part in microbatches(rows, TOKENS, policy.padded_tokens):
            pieces = torch.split(policy.log_probs(part), [row.num_tokens for row in part])
            total += sum(float(piece.sum().exp()) for piece in pieces)
        return total / len(rows)

    def numbers(self, updater: Updater, batch: Batch) -> dict[str, float]:
        """The last phase in the metrics' words: the mirror step on up to 32 of its groups, and its rollouts."""
        scored = sequence_log_ratios(updater.policy, batch, 32, TOKENS, self.runtime)
        rollouts = rollout_means([group.group for group in batch.groups])
        means = rollouts | mirror_means(*scored, tau=updater.objective.regression_tau)
        values = mean_values(means)
        return values | {"policy/max_log_ratio": float(np.abs(scored[0]).max())}


def phase_lagged(updater: Updater, batch: Batch, num_updates: int, first_update: int, seed: int) -> UpdateReport:
    """An update phase on stale rollouts, anchored like the later updates of a phase from its first one on."""
    report = UpdateReport()
    for index, part in enumerate(batch.minibatches(num_updates, range(len(batch.groups)))):
        report.lr = updater.schedule.set_lr(updater.safe_step.optimizer, first_update + index)
        anchored = updater._with_anchor(part, report)
        updater._step(anchored, anchored, False, report, (seed, index))
    return report


def write_problems(work: Path, dotted: bool) -> Path:
    """Every sum of two numbers below 30, as rows of a file; dotted ones are shown one to six dots before the answer."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / ("dotted.jsonl" if dotted else "problems.jsonl")
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(30) for b in range(30)]
    if dotted:
        dots = np.random.default_rng(0).integers(1, 7, size=len(rows))
        rows = [row | {"solution": "." * int(num) + row["answer"]} for num, row in zip(dots, rows, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start_recipe(work: Path, start: str, others: dict[str, Any] | None = None) -> Recipe:
    """The study's recipe on the problems of a start, with other changes where asked for."""
    dotted = start.startswith("dotted")
    changes: dict[str, Any] = {"task.path": str(write_problems(work, dotted)), "warm_start.stop_at": STARTS[start]}
    changes |= others or {}
    if dotted:
        changes |= {"task.solution_column": "solution", "task.answer_after": ".", "rollout.max_new_tokens": 16}
    return load_recipe(str(RECIPE), changes)


def with_model(recipe: Recipe, path: Path) -> Recipe:
    section = recipe.model.model_copy(update={"path": str(path), "settings": {}})
    return recipe.model_copy(update={"model": section})


def arm_recipe(recipe: Recipe, run: Run) -> Recipe:
    """The study's recipe with a run's objective and learning rate, which falls to 0 over the run's updates."""
    data = recipe.model_dump()
    data["objective"] = {"name": run.arm.objective, **run.arm.settings}
    data["optimizer"]["lr"] = run.lr
    data["train"] |= {"num_steps": NUM_UPDATES, "updates_per_step": 1, "tokens_per_microbatch": TOKENS}
    data["rollout"]["group_size"] = run.arm.group_size
    return Recipe.model_validate(data)
