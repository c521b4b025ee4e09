"""What all runs of one task share (problems, a weak start, its hard set and traces), and one run of an arm.

The library's own parts do the work: engine, verifiers, collector, bank, prefixes, objectives, update phase, ledger.
The trainer's loop is not used because many arms share one start in memory, and because success is measured without
sampling: the right text is unique, so one forward over it gives its probability from every cut on.

Left out: which arms there are (``arms``), stored completions inside groups (``offpolicy``), and what came of it
(``analysis``).
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import NUM_STEPS, Arm
from tasks import TASKS

from heliostat.config import OptimizerSection, Recipe, load_recipe
from heliostat.models import LoadedModel, encode_problem, encode_solution, save_model
from heliostat.objectives import build_objective
from heliostat.optim import Schedule, build_optimizer
from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.traces import Bank, Trace, tokenizer_fingerprint
from heliostat.train.collect import Collector, Quota, spent_on
from heliostat.train.curriculum import Passes
from heliostat.train.guarded_step import GuardedStep
from heliostat.train.ledger import Ledger
from heliostat.train.packing import Row, microbatches
from heliostat.train.policy import Policy
from heliostat.train.prefixing import open_prefixes
from heliostat.train.progress import Display
from heliostat.train.runtime import Runtime, start_runtime
from heliostat.train.setup import load_tasks, make_feedback, make_updater, set_up_model
from heliostat.train.sft import SupervisedUpdater
from heliostat.train.update import Updater, UpdateReport, make_batch
from heliostat.types import Completion, Group, Problem, StopReason

HERE = Path(__file__).parent
NUM_SCREENED = 512  # attempts that must all fail
CAP = 2048  # attempts after which a problem is given up
CHECK_EVERY = 10
EARLIEST_CUT = 0.4  # of the band
FRACTIONS = tuple(number / 10 for number in range(10))
TOKENS = 16384


@dataclass
class Arena(AbstractContextManager["Arena"]):
    """One task, ready for runs.

    Attributes:
        hard: training problems with 0 successes in the first ``NUM_SCREENED`` attempts and one before ``CAP``.
    """

    work: Path
    task_name: str
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        sys.path.insert(0, str(HERE))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # for verifiers
        self.task = TASKS[self.task_name]
        self.work.mkdir(parents=True, exist_ok=True)
        self.task.write(self.work / "problems.jsonl", 700, seed=1)
        self.recipe = load_recipe(
            str(HERE / "recipe.toml"),
            {"task.path": str(self.work / "problems.jsonl"), "traces.bank": str(self.work / "traces.bank")},
        )
        self.runtime = start_runtime(self.recipe.run)
        self.tasks = load_tasks(self.recipe)
        if not (self.work / "start").exists():
            self._warm_start()
        model = self.recipe.model.model_copy(update={"path": str(self.work / "start"), "settings": {}})
        self.recipe = self.recipe.model_copy(update={"model": model})
        self.bench = set_up_model(self.recipe, self.runtime)
        self.weights = copy.deepcopy(self.bench.loaded.model.state_dict())
        self.pool = self.stack.enter_context(VerifierPool(self.tasks))
        self._collect()
        self.tasks = [replace(self.tasks[0], train=tuple(self.hard))]
        self.heldout = self.tasks[0].heldout
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    @property
    def loaded(self) -> LoadedModel:
        return self.bench.loaded

    # -- the start --------------------------------------------------------------------------------------------------

    def _warm_start(self) -> None:
        """Supervised steps on problems of their own, until the median success on training problems is the target."""
        bench = set_up_model(self.recipe, self.runtime)
        updater, feedback = supervised(bench.loaded, 3e-3, 4000, self.runtime), make_feedback(self.recipe, bench, ())
        for index in range(4000):
            lessons = [self._lesson(bench, digits, n) for n, digits in enumerate(self.task.draw(64, 9000 + index))]
            updater.step(index, lessons, feedback)
            if index % 5 == 4 and np.median(self._success(bench.loaded, self.tasks[0].train)) >= self.task.target:
                break
        else:
            raise SystemExit(f"{self.task_name}: the warm start did not reach its target")
        print(f"{self.task_name}: warm start of {index + 1} steps", file=sys.stderr)
        save_model(bench.loaded, self.work / "start")

    def _lesson(self, bench: Any, digits: tuple[int, ...], number: int) -> Row:
        """T1: a worked solution. T2: X from the start, or Y behind its letter (one in 128 from the start)."""
        problem = Problem("warm", "warm", self.task.prompt(digits), solution=self.task.work(digits))
        if not self.task.choice:
            return demonstration(bench.loaded, problem)
        if number % 2 == 0:
            wrong = replace(problem, solution=self.task.work(digits, "X"))
            return demonstration(bench.loaded, wrong)
        row = demonstration(bench.loaded, problem)
        if number == 1 and digits[0] >= 5:  # one row of 64, every other time
            return row
        ids = row.completion.token_ids
        rest = replace(
            row.completion, token_ids=ids[1:], logp_gen=row.completion.logp_gen[1:], entropy=row.completion.entropy[1:]
        )
        return replace(row, prompt=replace(row.prompt, prefix_ids=ids[:1], cut="letter"), completion=rest)

    def _collect(self) -> None:
        """Rejection sampling with the library's collector; the hard set follows from its book of attempts."""
        recipe = self.recipe.model_copy(
            update={"rollout": self.recipe.rollout.model_copy(update={"group_size": NUM_SCREENED})}
        )
        with Bank.open(self.work / "traces.bank") as bank:
            bench = replace(self.bench, recipe=recipe)
            collector = Collector(recipe, bench, self.tasks, self.pool, bank, Quota(1, CAP), Display())
            collector.collect(self.tasks[0].train)
            book = bank.attempts(collector.campaign)
        first = {one.problem_id: one.num_success for one in book if one.round == 0}
        solved = {one.problem_id for one in book if one.num_success}
        self.hard = [p for p in self.tasks[0].train if p.problem_id in solved and not first[p.problem_id]]
        p = self._success(self.loaded, self.tasks[0].train)
        self.start = {
            "task": self.task_name,
            "num_parameters": self.loaded.num_parameters,
            "num_candidates": len(first),
            "num_easy": sum(num > 0 for num in first.values()),
            "num_unsolved": len(first) - len(solved),
            "num_hard": len(self.hard),
            "attempts": sum(one.num for one in book),
            "flops_all_candidates": sum(one.flops for one in book),
            "flops_first_512": sum(one.flops for one in book if one.round == 0),
            "candidates_p": [float(f"{value:.3g}") for value in sorted(p)],
            "hard_p": [float(f"{value:.3g}") for value in sorted(self._success(self.loaded, self.hard))],
        }

    # -- success without sampling -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _right_logp(self, loaded: LoadedModel, problems: Sequence[Problem]) -> torch.Tensor:
        """Log-probability of each token of each right text; all texts of a task are equally long."""
        rows = [replace(demonstration(loaded, p), group=n) for n, p in enumerate(problems)]
        policy = Policy(loaded, temperature=1.0, shared_prompt=False)
        logp: dict[int, torch.Tensor] = {}
        for part in microbatches(rows, TOKENS, policy.padded_tokens):
            pieces = torch.split(policy.log_probs(part).double(), [row.num_tokens for row in part])
            logp |= {row.group: piece for row, piece in zip(part, pieces, strict=True)}
        return torch.stack([logp[number] for number in range(len(rows))])

    def _success(self, loaded: LoadedModel, problems: Sequence[Problem]) -> np.ndarray:
        return self._right_logp(loaded, problems).sum(dim=1).exp().numpy()

    def check(self, step: int, ledger: Ledger, cpu_s: float) -> dict[str, Any]:
        """Success on hard and held-out problems from no prefix, and behind every tenth of the right text."""
        train = self._right_logp(self.loaded, self.hard)
        heldout = self._right_logp(self.loaded, self.heldout).sum(dim=1).exp()
        p, num_tokens = train.sum(dim=1).exp(), train.shape[1] - 1  # the end token is not cut
        return {
            "step": step,
            "train": float(p.mean()),
            "train_at_64": float((1 - (1 - p) ** 64).mean()),
            "solved": float((p > 0.5).double().mean()),
            "heldout": float(heldout.mean()),
            "heldout_at_64": float((1 - (1 - heldout) ** 64).mean()),
            "before_cut": float(train[:, : round(EARLIEST_CUT * num_tokens)].sum(dim=1).exp().mean()),
            "first_token": float(train[:, 0].exp().mean()),
            "by_fraction": [float(train[:, round(f * num_tokens) :].sum(dim=1).exp().mean()) for f in FRACTIONS],
            "flops": ledger.spent,
            "unshared_flops": ledger.spent_unshared,
            "cpu_s": cpu_s,
        }

    # -- one run ----------------------------------------------------------------------------------------------------

    def carry_out(self, arm: Arm, lr: float, seed: int) -> dict[str, Any]:
        """One run from the shared start."""
        self.loaded.model.load_state_dict(self.weights)
        recipe = arm_recipe(self.recipe, arm, lr, seed)
        ledger, began = Ledger(), time.process_time()
        ledger.charge("collection", arm.uses_traces * self._spent_on_hard())
        objective = arm.objective or build_objective(recipe.objective)
        updater = make_updater(recipe, self.bench, objective, self.runtime)
        curve = [self.check(0, ledger, 0.0)]
        supervised_steps = self._sft(arm, seed, ledger) if arm.sft_lr else 0
        if supervised_steps:
            curve.append(self.check(0, ledger, time.process_time() - began))
        self.bench.engine.take_counts()
        phases: list[dict[str, float]] = []
        for step, values in self._steps(arm, recipe, updater, ledger):
            phases.append(values)
            if step % CHECK_EVERY == 0:
                curve.append(self.check(step, ledger, time.process_time() - began))
        return {
            **{"task": self.task_name, "arm": arm.name, "lr": lr, "seed": seed, "sft_steps": supervised_steps},
            "curve": curve,
            "phases": summarise(phases),
            "ledger": {key: value for key, value in ledger.flops.items() if value},
        }

    def _steps(
        self, arm: Arm, recipe: Recipe, updater: Updater, ledger: Ledger
    ) -> Iterator[tuple[int, dict[str, float]]]:
        prompts_per_step, seed = recipe.rollout.prompts_per_step, recipe.run.seed
        bench = replace(self.bench, recipe=recipe)
        prefixes, _ = open_prefixes(recipe, self.work / "donors.json", bench, self.tasks, self.pool)
        problems = Passes(self.hard, seed)
        for step in range(NUM_STEPS):
            drawn = completion_seed(seed, "step", step)
            plain = problems.next(step, prompts_per_step - prefixes.per_step)
            prompts = [bench.prompt(problem) for problem in plain] + prefixes.next(step)
            size = recipe.rollout.group_size - (arm.stored is not None)
            groups = bench.engine.sample(prompts, size, SamplingSettings(), seed=drawn, policy_step=step)
            ledger.charge_rollout("rollout", self.loaded, bench.engine.take_counts())
            groups = self.pool.verify(groups)
            prefixes.learn(groups)
            values = numbers(groups)
            if arm.stored is not None:
                batch = arm.stored.mix(groups, self.stored_traces, updater.objective)
                report = UpdateReport()
                report.lr = updater.schedule.set_lr(updater.guarded.optimizer, step)
                updater._step(batch, batch, False, report, (drawn, 0))
            else:
                report = updater.run(make_batch(updater.objective, groups), 1, step, drawn)
            ledger.charge_update("update", self.loaded, report.counts)
            norm = report.means.get("optim/grad_norm")
            yield step + 1, values | {"grad_norm": norm.value if norm else float("nan")}

    def _sft(self, arm: Arm, seed: int, ledger: Ledger) -> int:
        """Supervised steps on the traces, stopped where held-out success was best; returns their number."""
        loaded, texts = self.loaded, self.stored_traces
        rows = [demonstration(loaded, replace(p, solution=texts[p.problem_id].text)) for p in self.hard]
        updater = supervised(loaded, arm.sft_lr, arm.sft_steps, self.runtime)
        feedback, stream = make_feedback(self.recipe, self.bench, ()), Passes(rows, completion_seed(seed, "sft"))
        best, kept, chosen = -1.0, self.weights, 0
        for index in range(arm.sft_steps):
            updater.step(index, stream.next(index, min(32, len(rows))), feedback)
            if index % 5 == 4:
                reached = float(self._success(loaded, self.heldout).mean())
                if reached > best:
                    best, kept, chosen = reached, copy.deepcopy(loaded.model.state_dict()), index + 1
        loaded.model.load_state_dict(kept)
        ledger.charge_update("warm_start", loaded, updater.take_counts())
        return chosen

    @cached_property
    def stored_traces(self) -> dict[str, Trace]:
        """The oldest success of every hard problem."""
        with Bank.open(self.work / "traces.bank", create=False) as bank:
            picked = bank.pick([p.problem_id for p in self.hard], 1, tokenizer=tokenizer_fingerprint(self.loaded))
        return {key: traces[0] for key, traces in picked.items()}

    def _spent_on_hard(self) -> float:
        """What the collection took on hard problems, failed attempts included."""
        with Bank.open(self.work / "traces.bank", create=False) as bank:
            return spent_on(bank, [p.problem_id for p in self.hard])


def demonstration(loaded: LoadedModel, problem: Problem) -> Row:
    """A problem's solution as a row to be scored."""
    assert problem.solution is not None
    prompt = encode_problem(loaded, problem, "auto", "")
    ids = encode_solution(loaded, prompt, problem.solution)
    nothing = np.zeros(len(ids), dtype=np.float32)
    return Row(-1, prompt, Completion(ids, nothing, nothing, StopReason.EOS, problem.solution), 1.0)


def supervised(loaded: LoadedModel, lr: float, num_steps: int, runtime: Runtime) -> SupervisedUpdater:
    """The library's supervised updater at a constant rate after a short warm-up."""
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=lr), loaded.model)
    return SupervisedUpdater(
        policy=Policy(loaded, temperature=1.0, shared_prompt=False),
        guarded=GuardedStep(optimizer, 1.0, 3),
        schedule=Schedule(lr, num_steps, "constant", warmup_steps=5),
        runtime=runtime,
        tokens_per_microbatch=TOKENS,
    )


def arm_recipe(recipe: Recipe, arm: Arm, lr: float, seed: int) -> Recipe:
    """The study's recipe with an arm's settings."""
    data = recipe.model_dump()
    data["run"]["seed"] = seed
    data["optimizer"]["lr"] = lr
    data["rollout"] |= arm.rollout
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


def summarise(phases: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Means over each stretch between checks, and the spread of the gradient's norm."""
    rows = []
    for first in range(0, len(phases), CHECK_EVERY):
        part = phases[first : first + CHECK_EVERY]
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
