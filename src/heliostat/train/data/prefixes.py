"""Prompts that begin with part of a stored solution: the problems, the cuts, and the mode of delivery.

    bank --one success per problem--> prefix_sources (kept in the run folder) --cut policy--> prompts of a step

``prefix``: an unfinished assistant turn in token ids, conditioned on and never scored. ``hint``: the same text inside
the question (a control). ``unrelated``: another problem's prefix (a control). Sources are selected once, when the run
begins. A resumed run reads them back, so that it makes the same cuts although the bank has grown meanwhile.

With an environment, sources are trajectories. They are cut only where one of the environment's replies ends, and the
turns before the cut are replayed into a fresh environment (``train.episodes``), which must answer as it did.

Left out: the length of a prefix (``traces.cuts``) and its upper bound (``traces.spans``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from heliostat.config import ConfigError, Recipe
from heliostat.models import decode
from heliostat.rollout import completion_seed
from heliostat.storage import publish_file
from heliostat.tasks import Task, VerifierPool
from heliostat.traces import Bank, Trace, check_bank, tokenizer_fingerprint
from heliostat.traces.cuts import CutPolicy, PrefixSource, build_cut_policy, cut_prefix_source
from heliostat.traces.spans import answer_start, longest_prefix
from heliostat.train.data.collect import spent_on
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Cut, Group, Mean, Message, Problem, Prompt, Turn

HINT = "\nA solution begins like this: "


@dataclass(frozen=True, slots=True)
class PrefixSources:
    """Stored solutions that a run may cut prefixes from, and the cost of their collection.

    Attributes:
        flops: of every attempt on these problems that the bank has recorded.
        num_refused: problems with a success, but no prefix without its answer; of a trajectory, without its last turn.
        damaged: one sentence per unusable part of the bank.
    """

    prefix_sources: tuple[PrefixSource, ...]
    flops: float
    num_refused: int
    damaged: tuple[str, ...] = ()


def find_prefix_sources(recipe: Recipe, bundle: ModelBundle, tasks: Sequence[Task]) -> PrefixSources:
    """Select the oldest success of every training problem in the bank, up to the start of its answer.

    With an environment, trajectories from that environment are selected, up to their last turn.

    Raises:
        ConfigError: the bank has no usable success in this model's token ids.
        BankError: the bank cannot be read.
    """
    problems = {problem.problem_id: (task, problem) for task in tasks for problem in task.train}
    with Bank.open(Path(recipe.traces.bank), create=False) as bank:
        tokenizer = tokenizer_fingerprint(bundle.loaded)
        issues = check_bank(bank)
        picked = bank.pick(
            problems,
            1,
            tokenizer=tokenizer,
            environment=recipe.environment.recorded_name,
            issues=type(issues)(),  # reported already
        )
        flops = spent_on(bank, list(picked))
    make = _trajectory_source if recipe.environment.enabled else _prefix_source
    found = [make(traces[0], *problems[key], recipe, bundle) for key, traces in sorted(picked.items())]
    prefix_sources = tuple(prefix_source for prefix_source in found if prefix_source.ids)
    if not prefix_sources:
        source, part = "", "a part to give before its answer"
        if recipe.environment.enabled:
            source, part = f" from environment '{recipe.environment.recorded_name}'", "a turn to give before its last"
        raise ConfigError(
            f"prefix.name = '{recipe.prefix.name}' needs successes to cut, but {recipe.traces.bank} has "
            f"{len(picked)}{source} for this task's training problems in this model's token ids, none of them with "
            f"{part}; fill it with heliostat sample MODEL --recipe RECIPE --bank FILE"
        )
    return PrefixSources(prefix_sources, flops, len(found) - len(prefix_sources), tuple(issues.lines()))


def _prefix_source(trace: Trace, task: Task, problem: Problem, recipe: Recipe, bundle: ModelBundle) -> PrefixSource:
    loaded, turn = bundle.loaded, trace.all_ids
    start = answer_start(decode(loaded, turn), problem.answer, problem.question, task.answer_after)
    room = loaded.context_length - len(trace.prompt_ids) - recipe.rollout.max_new_tokens
    length = longest_prefix(turn, lambda ids: decode(loaded, ids), start, loaded.eos_ids, room)
    return PrefixSource(problem.problem_id, turn[:length], len(turn) - (turn[-1] in loaded.eos_ids))


def _trajectory_source(trace: Trace, task: Task, problem: Problem, recipe: Recipe, bundle: ModelBundle) -> PrefixSource:
    """Return a trajectory up to the last reply that leaves a turn to sample, and room for it in every budget."""
    section, ids = recipe.environment, trace.all_ids
    room = bundle.loaded.context_length - len(trace.prompt_ids) - section.max_tokens
    ends = [turn.start for turn in trace.turns[1 : section.max_turns] if turn.start <= room]
    length = max(ends, default=0)
    num_tokens = len(ids) - (ids[-1] in bundle.loaded.eos_ids)
    return PrefixSource(problem.problem_id, ids[:length], num_tokens, trace.prompt_ids, trace.turns[: len(ends)])


def kept_prefix_sources(path: Path, find: Callable[[], PrefixSources]) -> PrefixSources:
    """Read the prefix sources of a run from ``path``, or find and store them on its first start.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        found = find()
        rows = [_row(prefix_source) for prefix_source in found.prefix_sources]
        content = {"flops": found.flops, "num_refused": found.num_refused, "donors": rows}
        publish_file(path, _checked(content))
        return found
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        del content["sha256"]
        if _checked(content) != raw:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"{path} is damaged: it lists the stored solutions that this run cuts prefixes from; restore it, or start "
            "anew with another --run"
        ) from None
    prefix_sources = tuple(_of_row(*row) for row in content["donors"])
    return PrefixSources(prefix_sources, content["flops"], content["num_refused"])


def _row(prefix_source: PrefixSource) -> list[Any]:
    row = [prefix_source.problem_id, list(prefix_source.ids), prefix_source.num_tokens]
    if prefix_source.turns:
        row += [list(prefix_source.prompt_ids), [astuple(turn) for turn in prefix_source.turns]]
    return row


def _of_row(
    problem_id: str, ids: Sequence[int], num: int, prompt_ids: Sequence[int] = (), turns: Sequence[Sequence[Any]] = ()
) -> PrefixSource:
    return PrefixSource(problem_id, tuple(ids), num, tuple(prompt_ids), tuple(Turn(*values) for values in turns))


def _checked(content: Mapping[str, Any]) -> bytes:
    """Encode ``content`` with its own digest: these ids are trained on, so damage must not pass unnoticed."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}) + "\n").encode()


PrefixMode = Callable[[ModelBundle, Problem, tuple[int, ...]], Prompt]


def as_prefix(bundle: ModelBundle, problem: Problem, ids: tuple[int, ...]) -> Prompt:
    """Deliver ``ids`` as the beginning of the assistant's answer."""
    return replace(bundle.prompt(problem), prefix_ids=ids, cut=Cut("prefix", len(ids)))


def as_hint(bundle: ModelBundle, problem: Problem, ids: tuple[int, ...]) -> Prompt:
    """Deliver ``ids`` as a hint in the question; the answer itself starts empty."""
    hint = HINT + decode(bundle.loaded, ids)
    prompt: str | tuple[Message, ...]
    if isinstance(problem.prompt, str):
        prompt = problem.prompt + hint
    else:
        last = problem.prompt[-1]
        prompt = (*problem.prompt[:-1], {**last, "content": last["content"] + hint})
    hinted = bundle.prompt(replace(problem, prompt=prompt))
    return replace(hinted, problem=problem, cut=Cut("hint", len(ids)))


def as_unrelated(bundle: ModelBundle, problem: Problem, ids: tuple[int, ...]) -> Prompt:
    """Deliver ``ids``, which begin an answer to another problem, as the beginning of the assistant's answer."""
    return replace(bundle.prompt(problem), prefix_ids=ids, cut=Cut("unrelated", len(ids)))


def as_replay(prefix_source: PrefixSource, problem: Problem, ids: tuple[int, ...]) -> Prompt:
    """Deliver the turns of a trajectory within ``ids``, to be replayed after the prompt that they followed."""
    turns = tuple(turn for turn in prefix_source.turns if turn.start < len(ids))
    return Prompt(problem, prefix_source.prompt_ids, ids, Cut("prefix", len(ids)), turns)


PREFIX_MODES: dict[str, PrefixMode] = {"prefix": as_prefix, "hint": as_hint, "unrelated": as_unrelated}


@dataclass
class Prefixes:
    """Prefixed prompts by step; none where the recipe asks for none.

    Attributes:
        per_step: number of prefixed prompts in a step.
        leaks: whether a text alone earns the reward of a problem; such a cut is refused and no prefix is given.
        num_leaks: number of refused cuts so far.
    """

    bundle: ModelBundle
    problems: Mapping[str, Problem]
    prefix_sources: Sequence[PrefixSource]
    policy: CutPolicy
    mode: PrefixMode
    seed: int
    per_step: int
    leaks: Callable[[Problem, str], bool]
    separator: str = ""
    num_leaks: int = 0
    _known: dict[tuple[str, tuple[int, ...]], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lengths = {prefix_source.problem_id: prefix_source.num_tokens for prefix_source in self.prefix_sources}
        items = [
            (prefix_source, index) for prefix_source in self.prefix_sources for index in range(self.policy.per_problem)
        ]
        self._stream = ShuffledEpochs(items, completion_seed(self.seed, "prefixes"))

    def next(self, step: int) -> list[Prompt]:
        """Build the prefixed prompts of a step (from 0), in shuffled passes over all (problem, cut) pairs."""
        if self.per_step == 0:
            return []
        return [
            self._prompt(prefix_source, index, step) for prefix_source, index in self._stream.next(step, self.per_step)
        ]

    def _prompt(self, prefix_source: PrefixSource, index: int, step: int) -> Prompt:
        problem = self.problems[prefix_source.problem_id]
        share = self.policy.share(prefix_source.problem_id, index, self.seed, step)
        ids = cut_prefix_source(prefix_source, share, self._boundaries(prefix_source))
        if ids and prefix_source.turns:  # the environment alone judges it, so no text gives the reward away
            return as_replay(prefix_source, problem, ids)
        if not ids or self._gives_away(problem, ids):
            return self.bundle.prompt(problem)
        return self.mode(self.bundle, problem, ids)

    def _boundaries(self, prefix_source: PrefixSource) -> tuple[int, ...] | None:
        """Return the lengths at which a step of the solution ends, or a reply of the environment."""
        if prefix_source.turns:
            return prefix_source.reply_ends
        if not self.separator:
            return None
        loaded = self.bundle.loaded
        return tuple(
            length
            for length in range(1, len(prefix_source.ids) + 1)
            if decode(loaded, prefix_source.ids[:length]).endswith(self.separator)
        )

    def _gives_away(self, problem: Problem, ids: tuple[int, ...]) -> bool:
        key = (problem.problem_id, ids)
        if key not in self._known:
            self._known[key] = self.leaks(problem, decode(self.bundle.loaded, ids))
        self.num_leaks += self._known[key]
        return self._known[key]

    def update(self, groups: Sequence[Group]) -> None:
        """Update the cut policy with the success rates of prefixed groups."""
        for group in groups:
            if group.prompt.cut:
                rate = float(np.mean([verdict.success for verdict in group.verdicts]))
                self.policy.update(group.prompt.problem.problem_id, rate)

    def means(self, groups: Sequence[Group]) -> dict[str, Mean]:
        """Compute success with and without a prefix, and the mean share of a solution that was given."""
        if self.per_step == 0:
            return {}
        means = {}
        for key, part in (
            ("prefix/success", [group for group in groups if group.prompt.cut]),
            ("prefix/success_without", [group for group in groups if not group.prompt.cut]),
        ):
            flags = [verdict.success for group in part for verdict in group.verdicts]
            means[key] = Mean(float(sum(flags)), len(flags))
        given = [
            group.prompt.cut.num_tokens / self._lengths[group.prompt.problem.problem_id]
            for group in groups
            if group.prompt.cut
        ]
        return means | {"prefix/share": Mean(sum(given), len(given))}


@dataclass(frozen=True, slots=True)
class _NoCuts:
    """The cut policy of a run without prefixes."""

    per_problem: int = 0

    def share(self, problem_id: str, index: int, seed: int, step: int) -> float:
        return 0.0

    def update(self, problem_id: str, success: float) -> None: ...

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None: ...


def open_prefixes(
    recipe: Recipe, path: Path, bundle: ModelBundle, tasks: Sequence[Task], pool: VerifierPool
) -> tuple[Prefixes, PrefixSources]:
    """Build a run's prefixes from the recipe, with the sources they are cut from.

    Args:
        path: file that stores the run's prefix sources.

    Raises:
        ConfigError: the bank has no solution to cut.
    """
    section = recipe.prefix
    problems = {problem.problem_id: problem for task in tasks for problem in task.train}
    prefix_sources = PrefixSources((), 0.0, 0)
    policy: CutPolicy = _NoCuts()
    per_step = 0
    if section.name != "none":
        policy = build_cut_policy(section.name, section.settings)
        prefix_sources = kept_prefix_sources(path, lambda: find_prefix_sources(recipe, bundle, tasks))
        per_step = round(section.share * recipe.rollout.prompts_per_step)
    given = _shifted(prefix_sources.prefix_sources) if section.mode == "unrelated" else prefix_sources.prefix_sources
    prefixes = Prefixes(
        bundle=bundle,
        problems=problems,
        prefix_sources=given,
        policy=policy,
        mode=PREFIX_MODES[section.mode],
        seed=recipe.run.seed,
        per_step=per_step,
        leaks=lambda problem, text: pool.judge(problem, [text]).result()[0].success,
        separator=section.separator,
    )
    return prefixes, prefix_sources


def _shifted(prefix_sources: Sequence[PrefixSource]) -> list[PrefixSource]:
    """Assign each prefix to the next problem."""
    return [
        replace(prefix_source, problem_id=prefix_sources[index - 1].problem_id)
        for index, prefix_source in enumerate(prefix_sources)
    ]
