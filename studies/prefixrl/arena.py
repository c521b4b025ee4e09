"""What all runs of one task share: problems, a weak start, its hard set, traces, and success without sampling.

The library's own parts do the work: engine, verifiers, collector, bank. Success is measured without sampling: the right
text is unique, so one forward over it gives its probability from every cut on.

Left out: which arms there are (``arms``), one run (``runs``), and what came of it (``analysis``).
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS

from heliostat.config import OptimizerSection, load_recipe
from heliostat.models import LoadedModel, encode_problem, encode_solution, save_model
from heliostat.optim import Schedule, build_optimizer
from heliostat.tasks import VerifierPool
from heliostat.traces import Bank, Trace, tokenizer_fingerprint
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.builders import make_feedback
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.console.progress import Display
from heliostat.train.data.collect import Collector, Quota, spent_on
from heliostat.train.distributed.ranks import Runtime, start_runtime
from heliostat.train.logprobs.packing import Row, microbatches
from heliostat.train.logprobs.policy import Policy
from heliostat.train.model_bundle import set_up_model
from heliostat.train.sft.updater import SupervisedUpdater
from heliostat.train.update.safe_step import SafeStep
from heliostat.types import Completion, Cut, Problem, StopReason

HERE = Path(__file__).parent
NUM_SCREENED = 512  # attempts that must all fail
CAP = 2048  # attempts after which a problem counts as unsolved
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
        if not (self.work / "problems.jsonl").exists():
            self.task.write(self.work / "problems.jsonl", 700, seed=1)
        self.recipe = load_recipe(
            str(HERE / "recipe.toml"),
            {
                "task.path": str(self.work / "problems.jsonl"),
                "traces.bank": str(self.work / "traces.bank"),
                **self.task.recipe,
            },
        )
        self.runtime = start_runtime(self.recipe.run)
        self.tasks = load_tasks(self.recipe)
        if not (self.work / "start").exists():
            self._warm_start()
        model = self.recipe.model.model_copy(update={"path": str(self.work / "start"), "settings": {}})
        self.recipe = self.recipe.model_copy(update={"model": model})
        self.bundle = set_up_model(self.recipe, self.runtime)
        self.weights = copy.deepcopy(self.bundle.loaded.model.state_dict())
        self.pool = self.stack.enter_context(VerifierPool(self.tasks))
        self._collect()
        self.tasks = [replace(self.tasks[0], train=tuple(self.hard))]
        self.heldout = self.tasks[0].heldout
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    @property
    def loaded(self) -> LoadedModel:
        return self.bundle.loaded

    # -- the start --------------------------------------------------------------------------------------------------

    def _warm_start(self) -> None:
        """Supervised steps on problems of their own, until the median success on training problems is the target."""
        bundle = set_up_model(self.recipe, self.runtime)
        updater, feedback = (
            supervised(bundle.loaded, self.task.start_lr, 4000, self.runtime),
            make_feedback(self.recipe, bundle, ()),
        )
        for index in range(4000):
            lessons = [self._lesson(bundle, digits, n) for n, digits in enumerate(self.task.draw(64, 9000 + index))]
            updater.step(index, lessons, feedback)
            if (index + 1) % self.task.look_every:
                continue
            if np.median(self.success(bundle.loaded, self.tasks[0].train)) >= self.task.target:
                break
        else:
            raise SystemExit(f"{self.task_name}: the warm start did not reach its target")
        print(f"{self.task_name}: warm start of {index + 1} steps", file=sys.stderr)
        save_model(bundle.loaded, self.work / "start")

    def _lesson(self, bundle: Any, digits: tuple[int, ...], number: int) -> Row:
        """T1: a worked solution. T2: X from the start, or Y behind its letter (one in 128 from the start)."""
        problem = Problem("warm", "warm", self.task.prompt(digits), solution=self.task.work(digits))
        if not self.task.choice:
            return demonstration(bundle.loaded, problem)
        if number % 2 == 0:
            wrong = replace(problem, solution=self.task.work(digits, "X"))
            return demonstration(bundle.loaded, wrong)
        row = demonstration(bundle.loaded, problem)
        if number == 1 and digits[0] >= 5:  # one row of 64, every other time
            return row
        ids = row.completion.token_ids
        rest = replace(
            row.completion, token_ids=ids[1:], logp_gen=row.completion.logp_gen[1:], entropy=row.completion.entropy[1:]
        )
        return replace(row, prompt=replace(row.prompt, prefix_ids=ids[:1], cut=Cut("letter", 1)), completion=rest)

    def _collect(self) -> None:
        """Rejection sampling with the library's collector; the hard set follows from its book of attempts."""
        recipe = self.recipe.model_copy(
            update={"rollout": self.recipe.rollout.model_copy(update={"group_size": NUM_SCREENED})}
        )
        with Bank.open(self.work / "traces.bank") as bank:
            bundle = replace(self.bundle, recipe=recipe)
            collector = Collector(recipe, bundle, self.tasks, self.pool, bank, Quota(1, CAP), Display())
            collector.collect(self.tasks[0].train)
            book = bank.attempts(collector.campaign)
        first = {one.problem_id: one.num_success for one in book if one.round == 0}
        solved = {one.problem_id for one in book if one.num_success}
        self.hard = [p for p in self.tasks[0].train if p.problem_id in solved and not first[p.problem_id]]
        p = self.success(self.loaded, self.tasks[0].train)
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
            "hard_p": [float(f"{value:.3g}") for value in sorted(self.success(self.loaded, self.hard))],
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

    def success(self, loaded: LoadedModel, problems: Sequence[Problem]) -> np.ndarray:
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

    # -- solutions ----------------------------------------------------------------------------------------------------

    @cached_property
    def stored_traces(self) -> dict[str, Trace]:
        """The oldest success of every hard problem."""
        with Bank.open(self.work / "traces.bank", create=False) as bank:
            picked = bank.pick([p.problem_id for p in self.hard], 1, tokenizer=tokenizer_fingerprint(self.loaded))
        return {key: traces[0] for key, traces in picked.items()}

    def spent_on_hard(self) -> float:
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
        safe_step=SafeStep(optimizer, 1.0, 3),
        schedule=Schedule(lr, num_steps, "constant", warmup_steps=5),
        runtime=runtime,
        tokens_per_microbatch=TOKENS,
    )
