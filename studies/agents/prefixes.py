"""Question 3: prefixes of trajectories against plain RL and supervised steps before it, at equal operations.

    weak start --rejection sampling, charged--> bank of successes --> prefixes (replayed turns), or supervised steps

Every arm starts from the same weights and stops at the same number of operations on its ledger: collection, supervised
steps, rollouts and updates. Success is measured without a prefix.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arena import Arena, numbers
from arms import OTHER_RATES, SEEDS, TRIAL_SEED
from worlds import RARE

from heliostat.config import OptimizerSection
from heliostat.optim import Schedule, build_optimizer
from heliostat.research import Experiment, TrainingDiverged
from heliostat.rollout import completion_seed
from heliostat.traces import Bank, Trace, tokenizer_fingerprint
from heliostat.train import Display
from heliostat.train.builders import make_feedback
from heliostat.train.data.collect import Collector, Quota
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.prefixes import open_prefixes
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.sft.updater import SupervisedUpdater
from heliostat.train.update.safe_step import SafeStep
from heliostat.types import Completion, Prompt

WORLD = "lookup-4"
BUDGET = 40e9  # FLOPs of every arm, collection included
NUM_PROBLEMS, ATTEMPTS = 32, 64  # of the collection
SFT_STEPS, SFT_ROWS, SFT_LR = 10, 16, 1e-3
UPDATES, PROMPTS = 4, 16  # of a step; eight episodes a prompt
ARMS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "prefix": {"prefix.name": "backtracking"},
    "supervised": {},
}
Key = tuple[str, float, int]


def plan(rows: Sequence[Mapping[str, Any]]) -> Iterator[Key]:
    """Every arm tries every rate on a seed of its own, then makes its other seeds at the best."""
    done = {(row["arm"], row["lr"], row["seed"]): row["after"] for row in rows}
    yield from ((arm, lr, TRIAL_SEED) for lr in OTHER_RATES for arm in ARMS)
    for seed in SEEDS:
        for arm in ARMS:
            tried = {lr: done[arm, lr, TRIAL_SEED] for lr in OTHER_RATES if (arm, lr, TRIAL_SEED) in done}
            if len(tried) == len(OTHER_RATES):
                yield arm, max(tried, key=lambda lr: tried[lr]), seed


class PrefixArena:
    """The weak start, the bank of its successes, and the cost of their collection."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        self.work, self.bank = work, work / f"{WORLD}.bank"
        self.arena = stack.enter_context(Arena(work, WORLD, RARE, {"traces.bank": str(self.bank)}))
        self.collected = self._collect(self.arena.experiment)

    def _collect(self, experiment: Experiment) -> dict[str, float]:
        """Sample the first training problems until each has a success or has used up its attempts."""
        rollout = experiment.recipe.rollout.model_copy(update={"group_size": 16, "prompts_per_step": NUM_PROBLEMS})
        recipe = experiment.recipe.model_copy(update={"rollout": rollout})
        with Bank.open(self.bank) as bank:
            bundle = replace(experiment.bundle, recipe=recipe)
            parts = (experiment.tasks, experiment.pool, bank, Quota(1, ATTEMPTS), Display())
            collector = Collector(recipe, bundle, *parts)
            collector.collect(experiment.train[:NUM_PROBLEMS])
            book = bank.attempts(collector.campaign)
        return {
            "attempts": sum(one.num for one in book),
            "solved": len({one.problem_id for one in book if one.num_success}),
            "flops": sum(one.flops for one in book),
        }

    def carry_out(self, key: Key) -> dict[str, Any]:
        """Make one run until its operations are spent."""
        arm, lr, seed = key
        experiment, started = self.arena.experiment, time.process_time()
        experiment.restart(self.arena.weights, settings_of(arm, lr, seed))
        experiment.ledger.charge("collection", self.collected["flops"] * (arm != "plain"))
        after_sft = self._supervise(seed) if arm == "supervised" else self.arena.before
        status, phases = "finished", []
        try:
            for values in self._steps(arm, seed):
                phases.append(values)
        except TrainingDiverged:
            status = "diverged"
        return {
            **{"arm": arm, "lr": lr, "seed": seed, "status": status},
            "before": self.arena.before,
            "after_sft": after_sft,
            "after": self.arena.success(),
            "phases": phases,
            "collection": self.collected,
            "flops": {name: value for name, value in experiment.ledger.flops.items() if value},
            "spent": experiment.ledger.spent,
            "cpu_s": round(time.process_time() - started, 2),
        }

    def _steps(self, arm: str, seed: int) -> Iterator[dict[str, float]]:
        experiment = self.arena.experiment
        parts = (experiment.bundle, list(experiment.tasks), experiment.pool)
        prefixes, _ = open_prefixes(experiment.recipe, self.work / f"sources-{arm}.json", *parts)
        for index in range(1000):
            if experiment.ledger.spent >= BUDGET:
                return
            plain = experiment.problems(index, PROMPTS - prefixes.per_step, seed=completion_seed(seed, "problems"))
            groups = experiment.sample([*plain, *prefixes.next(index)], seed=completion_seed(seed, "phase", index))
            prefixes.update(groups)
            experiment.step(groups, seed=completion_seed(seed, "order", index))
            without = [group for group in groups if not group.prompt.cut]
            share = float(np.mean([group.prompt.cut.num_tokens for group in groups if group.prompt.cut] or [0]))
            yield numbers(without) | {"given_tokens": round(share, 2)}

    def _supervise(self, seed: int) -> float:
        """Take supervised steps on the stored trajectories, charged to the ledger; return success after them."""
        experiment = self.arena.experiment
        with Bank.open(self.bank, create=False) as bank:
            name = experiment.recipe.environment.recorded_name
            ids = [problem.problem_id for problem in experiment.train[:NUM_PROBLEMS]]
            fingerprint = tokenizer_fingerprint(experiment.loaded)
            picked = bank.pick(ids, 1, tokenizer=fingerprint, environment=name)
        problems = {problem.problem_id: problem for problem in experiment.train}
        rows = [
            row_of(experiment, traces[0], Prompt(problems[key], traces[0].prompt_ids)) for key, traces in picked.items()
        ]
        optimizer = build_optimizer(OptimizerSection(name="adamw", lr=SFT_LR), experiment.loaded.model)
        updater = SupervisedUpdater(
            policy=Policy(experiment.loaded, temperature=1.0, shared_prompt=False),
            safe_step=SafeStep(optimizer, 1.0, 3),
            schedule=Schedule(SFT_LR, SFT_STEPS, "constant", warmup_steps=2),
            runtime=experiment.runtime,
            tokens_per_microbatch=experiment.recipe.train.tokens_per_microbatch,
        )
        stream = ShuffledEpochs(rows, completion_seed(seed, "sft"))
        feedback = make_feedback(experiment.opened, experiment.bundle, ())
        for index in range(SFT_STEPS):
            updater.step(index, stream.next(index, SFT_ROWS), feedback)
        experiment.ledger.charge_update("warm_start", experiment.loaded, updater.take_counts())
        return self.arena.success()


def row_of(experiment: Experiment, trace: Trace, prompt: Prompt) -> Row:
    """Turn a stored trajectory into a row of which the sampled turns are taught."""
    zeros = np.zeros(sum(turn.num_tokens for turn in trace.turns), dtype=np.float32)
    completion = Completion(trace.all_ids, zeros, zeros, trace.stop_reason, trace.text, turns=trace.turns)
    return Row(group=-1, prompt=prompt, completion=completion, advantage=1.0)


def settings_of(arm: str, lr: float, seed: int) -> dict[str, Any]:
    """Return a run's settings; the rate is constant, since a run ends when its operations are spent."""
    return {
        **ARMS[arm],
        "run.seed": seed,
        "optimizer.lr": lr,
        "optimizer.schedule": "constant",
        "train.updates_per_step": UPDATES,
        "rollout.prompts_per_step": PROMPTS,
    }
