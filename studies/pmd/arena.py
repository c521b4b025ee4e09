"""One run of an arm on the research API: its engine, verifiers, objectives, update phase and ledger.

The trainer's loop is not used because a study needs what a run should not have: rollouts that are stale on purpose,
a start that many arms share in memory, and success measured without sampling. Answers here are a few tokens long and
there is one right one, so the success rate of a problem *is* the probability of that answer: no evaluation noise.

Left out: which arms there are (``arms``) and what came of them (``analysis``).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import NUM_UPDATES, Run

from heliostat import sft
from heliostat.config import Recipe, load_recipe
from heliostat.research import Experiment, TrainingDiverged, open_experiment
from heliostat.rollout import completion_seed
from heliostat.types import Group, Problem

RECIPE = Path(__file__).with_name("recipe.toml")
STARTS = {"low": 0.2, "high": 0.6, "dotted-low": 0.2, "dotted-high": 0.6}  # success that the warm start stops at
CHECKS = 4  # evaluations during a run, evenly spaced, the last at its end
TOKENS = 16384  # of one forward
Anchor = tuple[torch.Tensor, ...]


@dataclass
class Arena(AbstractContextManager["Arena"]):
    """The shared parts of one start's runs: problems, verifier processes, and the warm-started weights."""

    work: Path
    start: str
    changes: dict[str, Any] = field(default_factory=dict)  # to the recipe, by dotted names
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        recipe = start_recipe(self.work, self.start, self.changes)
        warm = sft(recipe, run_dir=self.work / f"start-{self.start}").folder / "model"
        started = open_experiment(recipe, {"model.path": str(warm), "model.settings": {}})
        self.experiment: Experiment = self.stack.enter_context(started)
        self.weights = self.experiment.weights()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    def carry_out(self, run: Run) -> dict[str, Any]:
        """Make one run from the shared start; one that diverges keeps what it reached."""
        self.experiment.restart(self.weights, settings_of(run))
        self.experiment.updater.anchor_from_sampler = run.arm.anchor == "sampler"
        done, first, status = 0, None, "finished"
        last: dict[str, float] = {}
        curve, spent_s = [self.check(0, 0.0)], 0.0
        phases = self.phases(run)
        try:
            while done < NUM_UPDATES:
                started = time.process_time()
                done, last = next(phases)
                spent_s += time.process_time() - started
                first = first or last
                if done < NUM_UPDATES and done * CHECKS // NUM_UPDATES >= len(curve):
                    curve.append(self.check(done, spent_s))
        except TrainingDiverged:
            status = "diverged"
        curve.append(self.check(done, spent_s))
        return {**run.key, "status": status, "curve": curve, "first": first, "last": last}

    def phases(self, run: Run) -> Iterator[tuple[int, dict[str, float]]]:
        """Alternate rollouts and updates; yield the number of updates so far and the metrics of the last phase."""
        experiment = self.experiment
        for groups in self.rollouts(run):
            anchors = self.anchors(run, groups) if run.arm.lag else None
            seed = completion_seed(run.seed, "order", experiment.num_updates)
            step = experiment.step(groups, seed=seed, logp_old=anchors, shuffle=not run.arm.lag)
            metrics = step.rollout_metrics | experiment.mirror_metrics(step, 32)
            yield experiment.num_updates, {**metrics, "optim/bad_steps": float(step.report.bad_steps)}

    def anchors(self, run: Run, groups: Sequence[Group]) -> list[Anchor]:
        """Return the anchors of stale groups: the policy that sampled them, or the current one."""
        if run.arm.anchor == "sampler":
            return [tuple(torch.from_numpy(one.logp_gen) for one in group.completions) for group in groups]
        ledger = self.experiment.ledger
        before = ledger.state_dict()
        scored = self.experiment.score(groups)
        ledger.load_state_dict(before)  # results.jsonl counts the passes with gradients alone
        return scored

    def rollouts(self, run: Run) -> Iterator[list[Group]]:
        """Yield the verified groups of every phase in turn; with a lag, each waits that many updates before its own."""
        count = run.arm.updates_per_batch
        waiting: deque[list[Group]] = deque()
        for index in range(NUM_UPDATES // count):
            num_prompts = count * run.arm.prompts_per_minibatch
            problems = self.experiment.problems(index, num_prompts, seed=completion_seed(run.seed, "problems"))
            waiting.append(self.experiment.sample(problems, seed=completion_seed(run.seed, "phase", index)))
            if len(waiting) > run.arm.lag:
                yield waiting.popleft()
        yield from waiting

    def check(self, done: int, cpu_s: float) -> dict[str, float]:
        """Measure exact success on the held-out problems and on as many training problems, with the cost so far."""
        heldout, train = self.experiment.heldout, self.experiment.train
        flops = self.experiment.ledger.flops
        return {
            "updates": done,
            "heldout": self.success(heldout),
            "train": self.success(train[: len(heldout)]),
            "flops": flops["rollout"] + flops["update"],
            "cpu_s": cpu_s,
        }

    def success(self, problems: Sequence[Problem]) -> float:
        """Return the mean probability of the right answer."""
        return sum(float(logp.sum().exp()) for logp in self.experiment.score_solutions(problems)) / len(problems)


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


def settings_of(run: Run) -> dict[str, Any]:
    """Return a run's settings: objective, batch, and a learning rate that falls to 0 over the run's updates."""
    count = run.arm.updates_per_batch
    return {
        "objective.name": run.arm.objective,
        **{f"objective.{name}": value for name, value in run.arm.settings.items()},
        "optimizer.lr": run.lr,
        "train.num_steps": NUM_UPDATES // count,
        "train.updates_per_step": count,
        "train.tokens_per_microbatch": TOKENS,
        "rollout.prompts_per_step": count * run.arm.prompts_per_minibatch,
        "rollout.group_size": run.arm.group_size,
    }
