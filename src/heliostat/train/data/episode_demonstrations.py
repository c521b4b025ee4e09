"""Episodes played by an environment's own oracle, as rows for supervised steps.

    first observation -> prompt | right action, eos | observation | right action, eos | ... -> done

A row has exactly the ids that a rollout would have, and only those of the actions are taught. Episodes depend on their
problems alone, so each is played once. Mistakes (``Slips``) end an episode early or wrongly: one or two right actions
are taken from its end, and the last action of another problem is put there. A model that imitates them at temperature 1
succeeds at most as often as demonstrations are right.

Left out: the supervised update (``sft.updater``), and problems that bring their own solution (``demonstrations``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from heliostat.models import LoadedModel, TurnFormat, encode_solution
from heliostat.rollout import completion_seed
from heliostat.tasks.environments.contract import Step
from heliostat.tasks.environments.pool import Episode, NoOracle
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.train.data.demonstrations import Demonstrations
from heliostat.train.episodes import Environments
from heliostat.train.logprobs.packing import Row
from heliostat.types import Completion, Problem, Prompt, StopReason, Turn

_MOST_DROPPED = 2  # right actions that a mistake replaces

Taught = tuple[Prompt, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """The ids of an episode whose actions are all right.

    Attributes:
        prompt: with the first observation.
        turns: ids of each action, with the end of its turn.
        replies: ids of the observation between each action and the next one.
        last: the text of the last action.
    """

    prompt: Prompt
    turns: tuple[tuple[int, ...], ...]
    replies: tuple[tuple[int, ...], ...]
    last: str

    def ending(self, loaded: LoadedModel, num_dropped: int, last: str) -> PlayedEpisode:
        """Return the episode with another last action in place of its last ``num_dropped`` ones."""
        num_kept = len(self.turns) - num_dropped
        turns, replies = self.turns[:num_kept], self.replies[:num_kept]
        context = Prompt(self.prompt.problem, self.prompt.token_ids, _joined(turns, replies))
        return PlayedEpisode(self.prompt, (*turns, encode_solution(loaded, context, last)), replies, last)

    def row(self) -> Row:
        """Return the episode as one row, in which only the actions are scored."""
        spans: list[Turn] = []
        place = 0
        for turn, reply in zip_longest(self.turns, self.replies, fillvalue=()):
            spans.append(Turn(place, place + len(turn)))
            place += len(turn) + len(reply)
        zeros = np.zeros(sum(map(len, self.turns)), dtype=np.float32)
        completion = Completion(
            _joined(self.turns, self.replies), zeros, zeros, StopReason.ENVIRONMENT_DONE, self.last, turns=tuple(spans)
        )
        return Row(group=-1, prompt=self.prompt, completion=completion, advantage=1.0)

    def taught(self) -> Iterator[Taught]:
        """Yield each action with everything before it as its prompt.

        **Limits** The loss of these pairs together is that of ``row``.
        """
        for number, turn in enumerate(self.turns):
            before = _joined(self.turns[:number], self.replies[:number])
            yield Prompt(self.prompt.problem, self.prompt.token_ids, before), turn


def _joined(turns: Sequence[tuple[int, ...]], replies: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return turns and replies, alternating, as one list of ids."""
    return tuple(token for turn, reply in zip_longest(turns, replies, fillvalue=()) for token in (*turn, *reply))


@dataclass(slots=True)
class EpisodeDemonstrations:
    """The supervised rows of a run in an environment.

    Problems that bring a solution or a worked conversation are taught that one, after the environment's first
    observation. So are all problems of a recipe with tools alone, where no environment knows a right action.

    Attributes:
        own: rows of problems that bring their own solution.
    """

    own: Demonstrations
    environments: Environments
    _played: dict[tuple[str, str], PlayedEpisode] = field(default_factory=dict)

    def rows(self, step: int, problems: Sequence[Problem]) -> list[Row]:
        """Build one row per problem, or per assistant turn of its worked conversation.

        Mistakes depend on the seed and the step alone.

        Raises:
            EnvironmentFailed: an environment failed.
            ValueError: it has no oracle, or an episode does not fit the recipe's limits or the context.
        """
        bring_own = [problem for problem in problems if self._brings_own(problem)]
        played = self.play([problem for problem in problems if not self._brings_own(problem)])
        rng = np.random.default_rng(completion_seed(self.own.seed, "slips", step))
        progress = step / self.own.num_steps
        shown = [self._with_slip(one, played, rng, progress) for one in played]
        return [*self.own.rows(step, self._asked(bring_own)), *(one.row() for one in shown)]

    def play(self, problems: Sequence[Problem]) -> list[PlayedEpisode]:
        """Let the oracle play the episodes of all problems at once; each problem is played once in a run."""
        unseen = {_key(problem): problem for problem in problems if _key(problem) not in self._played}
        with ExitStack() as stack:
            plays = [_Play(problem, self._open(problem, stack), self.environments) for problem in unseen.values()]
            going = plays
            while going:
                asked = [play.ask() for play in going]
                answered = [play.act(action) for play, action in zip(going, asked, strict=True)]
                for play, step in zip(going, answered, strict=True):
                    play.take(step.result())
                going = [play for play in going if not play.is_over]
        self._played |= {key: play.played() for key, play in zip(unseen, plays, strict=True)}
        return [self._played[_key(problem)] for problem in problems]

    def _brings_own(self, problem: Problem) -> bool:
        return bool(problem.turns) or problem.solution is not None or not self.environments.section.name

    def _asked(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return the problems as rollouts ask them, with tools and the first observation."""
        with ExitStack() as stack:
            episodes = [self._open(problem, stack) for problem in problems]
            return [
                self.environments.format_of(problem, episode).with_observation(problem, episode.first.result())
                for problem, episode in zip(problems, episodes, strict=True)
            ]

    def _open(self, problem: Problem, stack: ExitStack) -> Episode:
        episode = self.environments.pool.open(row_of(problem), seed_of(problem), problem.described)
        stack.callback(episode.close)
        return episode

    def _with_slip(
        self, one: PlayedEpisode, played: Sequence[PlayedEpisode], rng: np.random.Generator, progress: float
    ) -> PlayedEpisode:
        """Return the episode, or a wrong ending of it, as often as its task asks for."""
        share = self.own.tasks[one.prompt.problem.task].slips.share_at(progress)
        slips, place = rng.random() < share, rng.random()
        num_dropped = int(rng.integers(1, min(_MOST_DROPPED, len(one.turns)) + 1))
        others = [other.last for other in played if other.last != one.last]
        if not slips or not others:
            return one
        return one.ending(self.own.loaded, num_dropped, others[int(place * len(others))])


def _key(problem: Problem) -> tuple[str, str]:
    return problem.task, problem.problem_id


class _Play:
    """An episode while the oracle plays it."""

    def __init__(self, problem: Problem, episode: Episode, environments: Environments) -> None:
        self._problem, self._episode, self._environments = problem, episode, environments
        self._begun: tuple[TurnFormat, Prompt] | None = None
        self._turns: list[tuple[int, ...]] = []
        self._replies: list[tuple[int, ...]] = []
        self._last = ""
        self.is_over = False

    def ask(self) -> Future[str]:
        """Ask for the next right action."""
        return self._episode.oracle()

    def act(self, asked: Future[str]) -> Future[Step]:
        """Take the action as the next turn.

        Raises:
            ValueError: the environment has no oracle.
        """
        prompt = self._begin()[1]
        try:
            self._last = asked.result()
        except NoOracle as error:
            raise ValueError(
                f"{error}, so there is no episode to imitate; give it one, bring solutions with the data, or set "
                "warm_start.num_steps = 0"
            ) from error
        context = Prompt(self._problem, prompt.token_ids, _joined(self._turns, self._replies))
        self._turns.append(encode_solution(self._environments.bundle.loaded, context, self._last))
        return self._episode.step(self._last)

    def take(self, step: Step) -> None:
        """Append the environment's answer, and check the limits of the episode.

        Raises:
            ValueError: it does not fit them, or the oracle goes on beyond them.
        """
        form = self._begin()[0]
        self.is_over = step.done
        if not step.done:
            self._replies.append(form.continuation(step.observation, self._turns[-1]))
        if problem := self._too_long():
            raise ValueError(f"{self._problem.described}: the oracle's episode {problem}")

    def played(self) -> PlayedEpisode:
        """Return the finished episode."""
        return PlayedEpisode(self._begin()[1], tuple(self._turns), tuple(self._replies), self._last)

    def _begin(self) -> tuple[TurnFormat, Prompt]:
        """Return the form of turns, and the prompt with the first observation; encoded once."""
        if self._begun is None:
            form = self._environments.format_of(self._problem, self._episode)
            asked = form.with_observation(self._problem, self._episode.first.result())
            self._begun = form, Prompt(self._problem, self._environments.bundle.prompt(asked).token_ids)
        return self._begun

    def _too_long(self) -> str:
        """Say which limit the episode exceeds; empty if none."""
        section, loaded = self._environments.section, self._environments.bundle.loaded
        if len(self._turns) >= section.max_turns and not self.is_over:
            return f"is not over after environment.max_turns = {section.max_turns} turns"
        if len(self._turns[-1]) > section.max_tokens_per_turn:
            return (
                f"has a turn of {len(self._turns[-1])} tokens ({self._last!r:.60}), and "
                f"environment.max_tokens_per_turn is {section.max_tokens_per_turn}"
            )
        num = len(_joined(self._turns, self._replies))
        if num > section.max_tokens:
            return f"has more than environment.max_tokens = {section.max_tokens} tokens"
        asked = len(self._begin()[1].token_ids)
        if asked + num > loaded.context_length:
            return (
                f"has {num} tokens after a prompt of {asked}, but the context of model '{loaded.name}' holds "
                f"{loaded.context_length}"
            )
        return ""
