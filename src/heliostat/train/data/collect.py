"""Rejection sampling into a trace bank: every problem is tried until its quota of successes or attempts is reached.

    round r: all open problems, a few at a time -> sample -> verify -> one transaction (successes, attempts)

The random streams of a round depend on the seed, the round and the problem alone, and a round is stored whole or not at
all. A killed collection therefore continues with the missing rounds and ends with the same traces.

Left out: failures, which are counted with their cost but not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heliostat.config import Recipe
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.tasks import Task, VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.traces import Attempts, Bank, BankSummary, policy_fingerprint, summarise
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.checks.encoding import check_encodable
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.console.notebook import open_display
from heliostat.train.console.progress import Display
from heliostat.train.data.trace_log import sources_of, traces_of
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.episodes import with_episodes
from heliostat.train.model_bundle import ModelBundle, set_up_sampler
from heliostat.types import Group, Problem


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits at which a problem is not tried any more.

    Attributes:
        num_successes: successes that fulfil the quota.
        max_attempts: attempts after which it is given up.
    """

    num_successes: int = 1
    max_attempts: int = 256

    def __post_init__(self) -> None:
        if self.num_successes < 1 or self.max_attempts < 1:
            raise ValueError(
                f"a quota needs at least one success and one attempt, got {self.num_successes} and {self.max_attempts}"
            )


@dataclass(slots=True)
class _State:
    """The progress of one problem in this campaign."""

    problem: Problem
    num_rounds: int = 0
    num_attempts: int = 0
    num_successes: int = 0

    def is_open(self, quota: Quota) -> bool:
        return self.num_successes < quota.num_successes and self.num_attempts < quota.max_attempts

    def take(self, attempts: Attempts) -> None:
        self.num_rounds += 1
        self.num_attempts += attempts.num
        self.num_successes += attempts.num_success


@dataclass
class Collector:
    """One campaign: a policy, its sampling settings and a seed."""

    recipe: Recipe
    bundle: ModelBundle
    tasks: Sequence[Task]
    pool: VerifierPool
    bank: Bank
    quota: Quota
    display: Display
    run: str = "sample"

    def __post_init__(self) -> None:
        rollout, seed = self.recipe.rollout, self.recipe.run.seed
        policy = policy_fingerprint(self.bundle.loaded)
        self.campaign = (
            f"{policy} T={rollout.temperature:g} n={rollout.group_size} L={rollout.max_new_tokens} seed={seed}"
        )
        environment = self.recipe.environment
        if environment.enabled:
            self.campaign += (
                f" in {environment.recorded_name} turns={environment.max_turns}x{environment.max_tokens_per_turn} "
                f"tokens={environment.max_tokens}"
            )
        self.sources = sources_of(self.recipe, self.bundle.loaded, self.tasks, self.run, 0)
        self.ledger = Ledger()

    def collect(self, problems: Sequence[Problem]) -> None:
        """Sample all problems up to their quota; rounds that the bank already has of this campaign are skipped."""
        states = {problem.problem_id: _State(problem) for problem in problems}
        for attempts in self.bank.attempts(self.campaign):
            if attempts.problem_id in states:
                states[attempts.problem_id].take(attempts)
        done = sum(not state.is_open(self.quota) for state in states.values())
        self.display.begin_phase("collect", len(states), done=done)
        for chunk in self._chunks(list(states.values())):
            self._try(chunk)
            done = sum(not state.is_open(self.quota) for state in states.values())
            solved = sum(state.num_successes > 0 for state in states.values()) / len(states)
            self.display.step(done, {"reward/success": solved})
        self.display.end_phase()

    def _chunks(self, states: Sequence[_State]) -> Iterator[list[_State]]:
        """Yield open problems of the lowest round first, as many at a time as a training step has."""
        size = self.recipe.rollout.prompts_per_step
        while opened := [state for state in states if state.is_open(self.quota)]:
            round_index = min(state.num_rounds for state in opened)
            due = [state for state in opened if state.num_rounds == round_index]
            for first in range(0, len(due), size):
                yield due[first : first + size]

    def _try(self, chunk: Sequence[_State]) -> None:
        rollout, round_index = self.recipe.rollout, chunk[0].num_rounds
        prompts = [self.bundle.prompt(state.problem) for state in chunk]
        settings = SamplingSettings(temperature=rollout.temperature)
        seed = completion_seed(self.recipe.run.seed, "collect", round_index)
        groups = self.bundle.engine.sample(
            SampleRequest(prompts, rollout.group_size, settings, seed=seed, policy_step=0)
        )
        groups = self.pool.verify(groups)
        before = self.ledger.flops["collection"]
        self.ledger.charge_rollout("collection", self.bundle.loaded, self.bundle.engine.take_counts())
        traces = traces_of(groups, self.sources, self.ledger.flops["collection"] - before)
        costs = [sum(trace.flops for trace in traces if trace.problem_id == s.problem.problem_id) for s in chunk]
        attempts = [
            _attempts(self.campaign, round_index, group, rollout.group_size, cost)
            for group, cost in zip(groups, costs, strict=True)
        ]
        self.bank.append([trace for trace in traces if trace.success], attempts)
        for state, one in zip(chunk, attempts, strict=True):
            state.take(one)


def _attempts(campaign: str, round_index: int, group: Group, num: int, flops: float) -> Attempts:
    """Count a group's attempts; those whose environment failed count too, or a broken problem would never end."""
    successes = sum(verdict.success for verdict in group.verdicts)
    return Attempts(campaign, group.prompt.problem.problem_id, round_index, num, successes, flops)


def run_collect(
    model: str,
    recipe: Recipe,
    bank: Path,
    quota: Quota,
    num_problems: int | None = None,
    display: Display | None = None,
) -> BankSummary:
    """Fill a bank with successes on the recipe's training problems, or continue an interrupted call."""
    section = recipe.model.model_copy(
        update={"path": model, "settings": recipe.model.settings if model == "tiny" else {}}
    )
    recipe = recipe.model_copy(update={"model": section})
    tasks = load_tasks(recipe)
    problems = [problem for task in tasks for problem in task.train][:num_problems]
    bundle = set_up_sampler(recipe, start_runtime(recipe.run))
    check_encodable(recipe, [replace(task, train=(), heldout=task.train) for task in tasks], bundle)
    environment = environment_of(recipe.environment)
    with VerifierPool(tasks, environment) as pool, Bank.open(bank) as opened, display or open_display() as shown:
        bundle = with_episodes(bundle, pool.environments, shown.note)
        Collector(recipe, bundle, tasks, pool, opened, quota, shown).collect(problems)
        return summarise(opened)


def spent_on(bank: Bank, problem_ids: Sequence[str]) -> float:
    """Return the FLOPs of all attempts on these problems, unsuccessful ones included."""
    wanted = set(problem_ids)
    return float(sum(one.flops for one in bank.attempts() if one.problem_id in wanted))
