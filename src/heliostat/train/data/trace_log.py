"""Verified groups as traces in a bank, for training and rejection sampling.

Left out: the bank itself (``traces``), and the choice of groups to store (the callers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from heliostat.config import Recipe
from heliostat.models import LoadedModel
from heliostat.tasks import Task
from heliostat.traces import Bank, Trace, TraceSource, policy_fingerprint, tokenizer_fingerprint
from heliostat.traces.record import moved
from heliostat.train.data.problem_lookup import verifier_names
from heliostat.types import Completion, Group, Prompt, Turn


def traces_of(groups: Sequence[Group], sources: Mapping[str, TraceSource], flops: float) -> list[Trace]:
    """Convert every completion of verified groups to a trace.

    Args:
        sources: by task, the policy and verifiers of the traces.
        flops: of sampling all groups. Each trace is charged by all its tokens, an environment's included, and by its
            prompt's tokens divided by the group size.
    """
    tokens = [
        [len(group.prompt.context_ids) / len(group.completions) + len(one.token_ids) for one in group.completions]
        for group in groups
    ]
    per_token = flops / max(1.0, sum(map(sum, tokens)))
    return [
        Trace(
            problem_id=group.prompt.problem.problem_id,
            task=group.prompt.problem.task,
            prompt_ids=group.prompt.token_ids,
            prefix_ids=group.prompt.prefix_ids,
            cut=str(group.prompt.cut or ""),
            completion_ids=completion.token_ids,
            logp_gen=completion.logp_gen,
            text=completion.text,
            reward=verdict.reward,
            success=verdict.success,
            stop_reason=completion.stop_reason,
            seed=completion.seed,
            flops=per_token * num,
            turns=turns_of(group.prompt, completion),
            source=sources[group.prompt.problem.task],
        )
        for group, nums in zip(groups, tokens, strict=True)
        for completion, verdict, num in zip(group.completions, group.verdicts, nums, strict=True)
    ]


def turns_of(prompt: Prompt, completion: Completion) -> tuple[Turn, ...]:
    """Return all turns of a trajectory, those of the prompt's prefix first, as places in prefix and completion."""
    given = len(prompt.prefix_ids)
    return (*prompt.prefix_turns, *(moved(turn, given) for turn in completion.turns))


def sources_of(
    recipe: Recipe, loaded: LoadedModel, tasks: Sequence[Task], run: str, step: int
) -> dict[str, TraceSource]:
    """Describe the current policy by task, as a trace records it."""
    tokenizer, policy = tokenizer_fingerprint(loaded), policy_fingerprint(loaded)
    environment, max_tokens = recipe.environment, recipe.rollout.max_new_tokens
    if environment.enabled:
        max_tokens = environment.max_tokens
    return {
        task.name: TraceSource(
            tokenizer=tokenizer,
            policy=policy,
            run=run,
            step=step,
            temperature=recipe.rollout.temperature,
            max_new_tokens=max_tokens,
            verifier=verifier_names(task),
            environment=environment.recorded_name,
        )
        for task in tasks
    }


class TraceLog:
    """The log of a training run's rollouts in the recipe's bank, if it names one and this rank writes it."""

    def __init__(
        self, recipe: Recipe, tasks: Sequence[Task], loaded: LoadedModel, run: str, keeps: bool = True
    ) -> None:
        section = recipe.traces
        self._recipe, self._tasks, self._loaded, self._run = recipe, tasks, loaded, run
        self._stack = ExitStack()
        self._bank: Bank | None = None
        self._path = Path(section.bank) if keeps and section.bank and section.keep != "none" else None

    def __enter__(self) -> Self:
        if self._path is not None:
            self._bank = self._stack.enter_context(Bank.open(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, groups: Sequence[Group], sources: Mapping[str, TraceSource], flops: float) -> None:
        """Store a step's groups; groups of a step that is repeated after a restart are in the bank already."""
        if self._bank is None:
            return
        traces = traces_of(groups, sources, flops)
        kept = [trace for trace in traces if trace.success or self._recipe.traces.keep == "all"]
        self._bank.append(kept)

    def sources(self, policy_step: int) -> dict[str, TraceSource]:
        """Describe the current policy by task; to be called before the weights change."""
        if self._bank is None:
            return {}
        return sources_of(self._recipe, self._loaded, self._tasks, self._run, policy_step)
