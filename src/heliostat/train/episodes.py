"""Sample whole episodes: every completion of a request talks to an environment of its own.

    problem -> reset every member's environment -> prompt with the first observation -> turns -> completions

An episode whose environment fails is left out of its group: it is in no baseline, no loss and no denominator, and it is
counted. A prompt that begins with turns of a stored trajectory replays them first; if the environment answers otherwise
than it did then, the whole group is left out and counted.

Left out: how turns are decoded (``rollout``), the environment's processes (``tasks.environments``), and how its words
become token ids (``models.prompts.turn_format``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from heliostat.config import EnvironmentSection
from heliostat.models import LoadedModel, decode_to_stop
from heliostat.models.prompts.turn_format import TurnFormat
from heliostat.rollout import Engine, RolloutCounts, SampleRequest
from heliostat.rollout.request import Reply
from heliostat.spans import span
from heliostat.tasks.environments.contract import EnvironmentFailed, Step
from heliostat.tasks.environments.pool import EnvironmentPool, Episode
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Group, Problem, Prompt, StopReason, Turn

MAX_SENTENCES = 3
"""Failures of one request that are told; further ones are counted."""

Note = Callable[[str], object]


class UnlikeWorlds(RuntimeError):
    """Members of a group see different first observations, so their rewards cannot be compared."""


@dataclass(kw_only=True, slots=True)
class Environments:
    """The environments of a run, and the forms in which its model reads and writes.

    Attributes:
        note: told of failures, a few a request.
        tools: JSON schemas of the environment's tools, once an episode has told them.
    """

    pool: EnvironmentPool
    bundle: ModelBundle
    note: Note
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def section(self) -> EnvironmentSection:
        """The recipe's environment."""
        return self.bundle.recipe.environment

    def format_of(self, problem: Problem, episode: Episode) -> TurnFormat:
        """Return the format of turns for a problem's form of prompt, with the tools that its episode has."""
        if self.tools is None:
            self.tools = episode.tools().result()
        model = self.bundle.recipe.model
        return TurnFormat.of(self.bundle.loaded, problem, model.chat, model.system, self.tools)

    def action(self, turn_ids: Sequence[int]) -> str:
        """Return the text of a turn, which ends before the first stop string."""
        return decode_to_stop(self.bundle.loaded, turn_ids, self.bundle.recipe.rollout.stop)


@dataclass(slots=True)
class EpisodeDialogue:
    """One episode, as the other side of a completion.

    Attributes:
        num_turns: turns so far, replayed ones included.
        failure: one sentence on the failure of its environment; empty without one.
    """

    episode: Episode
    environments: Environments
    format: TurnFormat
    num_turns: int = 0
    failure: str = ""

    @property
    def max_turn_tokens(self) -> int:
        """See ``Dialogue.max_turn_tokens``."""
        return self.environments.section.max_tokens_per_turn

    def reply(self, turn_ids: Sequence[int], room: int) -> Future[Reply]:
        """See ``Dialogue.reply``."""
        self.num_turns += 1
        reply: Future[Reply] = Future()
        ids = tuple(turn_ids)

        def on_step(answered: Future[Step]) -> None:
            try:
                reply.set_result(self._reply(ids, answered))
            except BaseException as error:  # of the pool: the engine's thread raises it
                reply.set_exception(error)

        self.episode.step(self.environments.action(ids)).add_done_callback(on_step)
        return reply

    def end(self) -> None:
        """See ``Dialogue.end``."""
        self.episode.close()

    def continuation(self, step: Step, turn_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the token ids of an observation, after a turn.

        Raises:
            EnvironmentFailed: the chat template refuses it.
        """
        try:
            return self.format.continuation(step.observation, turn_ids)
        except ValueError as error:
            raise EnvironmentFailed(str(error)) from error

    def _reply(self, turn_ids: tuple[int, ...], answered: Future[Step]) -> Reply:
        try:
            step = answered.result()
            turn = turn_of(step)
            if step.done:
                return Reply((), StopReason.ENVIRONMENT_DONE, turn)
            if self.num_turns >= self.environments.section.max_turns:
                return Reply((), StopReason.OUT_OF_TURNS, turn)
            return Reply(self.continuation(step, turn_ids), None, turn)
        except EnvironmentFailed as error:
            self.failure = str(error)
            return Reply((), StopReason.ENVIRONMENT_FAILED, Turn(0, 0))


def turn_of(step: Step) -> Turn:
    """Return the record of a turn that was answered by ``step``; its span is not known yet."""
    success = step.info.get("success")
    return Turn(
        0,
        0,
        reward=step.reward,
        success=None if success is None else bool(success),
        num_calls=int(step.info.get("calls", 0)),
        num_errors=int(step.info.get("errors", 0)),
        is_invalid=bool(step.info.get("invalid", False)),
    )


@dataclass(slots=True)
class EpisodeEngine:
    """An engine whose completions are episodes."""

    engine: Engine
    environments: Environments
    _counts: RolloutCounts = field(default_factory=RolloutCounts)

    @property
    def way(self) -> str:
        """See ``Engine.way``."""
        return self.engine.way

    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample an episode for every member of every group; see ``Engine.sample``.

        Returns:
            The groups in prompt order, without the episodes whose environments failed; a group may be empty.

        Raises:
            UnlikeWorlds: the members of a group see different first observations.
            EnvironmentFailed: not one environment worked.
        """
        with ExitStack() as stack:
            with span("environment"):
                openings = [_Opening(prompt, request, self.environments, stack) for prompt in request.prompts]
                opened = {index: one for index, opening in enumerate(openings) if (one := opening.opened())}
            groups = self._sample(request, opened)
        self._count(openings, groups)
        return [groups.get(index, _empty(prompt, request)) for index, prompt in enumerate(request.prompts)]

    def _sample(self, request: SampleRequest, opened: Mapping[int, _Opened]) -> dict[int, Group]:
        """Sample the prompts whose environments have opened; return their groups by index."""
        if not opened:
            return {}
        indices = list(opened)

        def on_group(place: int, group: Group) -> None:
            if request.on_group is not None and (scored := _scored(group)).completions:
                request.on_group(indices[place], scored)

        inner = replace(
            request,
            prompts=[opened[index].prompt for index in indices],
            dialogues=[opened[index].dialogues for index in indices],
            on_group=on_group,
        )
        return dict(zip(indices, map(_scored, self.engine.sample(inner)), strict=True))

    def _count(self, openings: Sequence[_Opening], groups: Mapping[int, Group]) -> None:
        told = [sentence for opening in openings for sentence in opening.sentences()]
        num = sum(len(opening.episodes) for opening in openings)
        num_scored = sum(len(group.completions) for group in groups.values())
        self._counts.episodes += num
        self._counts.failed_episodes += num - num_scored
        self._counts.refused_replays += sum(opening.is_refused for opening in openings)
        for sentence in dict.fromkeys(told[:MAX_SENTENCES]):
            self.environments.note(sentence)
        if num and not num_scored:
            raise EnvironmentFailed(f"none of {num} episodes could be scored: {told[0] if told else 'no reason known'}")

    def take_counts(self) -> RolloutCounts:
        """See ``Engine.take_counts``."""
        counts, self._counts = self._counts + self.engine.take_counts(), RolloutCounts()
        return counts

    def clone_for(self, loaded: LoadedModel) -> EpisodeEngine:
        """See ``Engine.clone_for``; the environments' processes are the same."""
        return EpisodeEngine(self.engine.clone_for(loaded), self.environments)

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self.engine.stop()


def with_episodes(bundle: ModelBundle, pool: EnvironmentPool | None, note: Note) -> ModelBundle:
    """Return the bundle with an engine whose completions are episodes; without an environment, unchanged."""
    if pool is None:
        return bundle
    environments = Environments(pool=pool, bundle=bundle, note=note)
    return replace(bundle, engine=EpisodeEngine(bundle.engine, environments))


@dataclass(frozen=True, slots=True)
class _Opened:
    prompt: Prompt
    dialogues: list[EpisodeDialogue]


class _Opening:
    """The episodes of one group, from the first reset to the end of a replay."""

    def __init__(self, prompt: Prompt, request: SampleRequest, environments: Environments, stack: ExitStack) -> None:
        self.prompt, self.environments = prompt, environments
        problem = prompt.problem
        self.episodes = [
            environments.pool.open(row_of(problem), seed_of(problem), problem.described)
            for _ in range(request.group_size)
        ]
        for episode in self.episodes:
            stack.callback(episode.close)
        self.failure, self.is_refused = "", False
        self.dialogues: list[EpisodeDialogue] = []

    def opened(self) -> _Opened | None:
        """Wait for the first observations and the replays; ``None`` if the group cannot be sampled."""
        try:
            prompt, form = self._prompt()
            self.dialogues = [EpisodeDialogue(episode, self.environments, form) for episode in self.episodes]
            self._replay(prompt)
        except EnvironmentFailed as error:
            self.failure = str(error)
            return None
        return _Opened(prompt, self.dialogues)

    def _prompt(self) -> tuple[Prompt, TurnFormat]:
        """Return the prompt with the first observation, which all members must share."""
        problem = self.prompt.problem
        first, *others = [episode.first.result() for episode in self.episodes]
        if any(other != first for other in others):
            raise UnlikeWorlds(
                f"environment '{self.environments.section.name}', {problem.described}: members of one group see "
                f"different first observations ({_short(first)} and "
                f"{_short(next(other for other in others if other != first))}) although problem and seed are the same; "
                "its reset must depend on nothing else"
            )
        form = self.environments.format_of(problem, self.episodes[0])
        shown = form.with_observation(problem, first)
        try:
            encoded = self.environments.bundle.prompt(shown)
        except ValueError as error:  # too long for the context, or refused by the chat template
            raise EnvironmentFailed(str(error)) from error
        if self.prompt.prefix_turns and encoded.token_ids != self.prompt.token_ids:
            self._refuse(f"it begins otherwise than when its trajectory was stored ({_short(first)})")
        return replace(self.prompt, token_ids=encoded.token_ids, shown=form.tools.told_in(shown).prompt), form

    def _replay(self, prompt: Prompt) -> None:
        """Replay the turns of the prompt's prefix in every episode, and compare the answers id for id."""
        for turn, expected in _answered(prompt):
            ids = prompt.prefix_ids[turn.start : turn.end]
            steps = [episode.step(self.environments.action(ids)) for episode in self.episodes]
            for dialogue, answered in zip(self.dialogues, steps, strict=True):
                step = answered.result()
                dialogue.num_turns += 1
                found = () if step.done else dialogue.continuation(step, ids)
                if found != expected:
                    said = _short(step.observation)
                    self._refuse(f"a replayed trajectory was answered otherwise than when it was stored ({said})")

    def _refuse(self, difference: str) -> NoReturn:
        """Leave the group out, because its stored turns belong to another world.

        Raises:
            EnvironmentFailed: always.
        """
        self.is_refused = True
        raise EnvironmentFailed(
            f"environment '{self.environments.section.recorded_name}', {self.prompt.problem.described}: {difference}, "
            "so the trajectory is not used"
        )

    def sentences(self) -> Iterator[str]:
        """Yield the failures of the group."""
        if self.failure:
            yield self.failure
        yield from (dialogue.failure for dialogue in self.dialogues if dialogue.failure)


def _answered(prompt: Prompt) -> Iterator[tuple[Turn, tuple[int, ...]]]:
    """Yield the turns of a prompt's prefix, each with the ids that the environment answered with."""
    ends = [turn.start for turn in prompt.prefix_turns] + [len(prompt.prefix_ids)]
    for turn, end in zip(prompt.prefix_turns, ends[1:], strict=True):
        yield turn, prompt.prefix_ids[turn.end : end]


def _scored(group: Group) -> Group:
    """Return the group without the completions whose environments failed."""
    scored = (one for one in group.completions if one.stop_reason is not StopReason.ENVIRONMENT_FAILED)
    return replace(group, completions=tuple(scored))


def _empty(prompt: Prompt, request: SampleRequest) -> Group:
    return Group(prompt, (), policy_step=request.policy_step)


def _short(observation: Any) -> str:
    return f"{observation!r:.60}"
