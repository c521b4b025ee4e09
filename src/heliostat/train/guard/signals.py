"""The signals that a run measures at every step, and the position of answers in completions.

Left out: the signals themselves (``monitors``), and metrics of the mirror step (``train.update.mirror_metrics``).
"""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.models import LoadedModel, decode
from heliostat.monitors.diversity import AnswerDiversity, DuplicatePrompts, TextRepetition
from heliostat.monitors.entropy import Concentration, EntropyDrift, ThoughtAndAnswer, TokenEntropy
from heliostat.monitors.signal import Monitor, Signal
from heliostat.monitors.turns import Action, Trajectories
from heliostat.tasks import Task
from heliostat.tasks.answers import find_answer
from heliostat.types import Completion, Group


def make_monitor(tasks: Sequence[Task], loaded: LoadedModel, action: Action | None = None) -> Monitor:
    """Build the monitor of step-level signals for a run on these tasks.

    Args:
        action: the text of a turn, in a run with an environment.
    """
    answers = Answers({task.name: task.answer_after for task in tasks}, loaded)
    signals: list[Signal] = [TokenEntropy(tuple(task.name for task in tasks)), Concentration(), EntropyDrift()]
    if any(task.answer_after for task in tasks):
        signals.append(ThoughtAndAnswer(answers.start))
    signals += [AnswerDiversity(answers.text), TextRepetition(), DuplicatePrompts()]
    return Monitor(signals if action is None else [*signals, Trajectories(action)])


class Answers:
    """The answers in completions, each after its task's marker."""

    def __init__(self, markers: dict[str, str], loaded: LoadedModel) -> None:
        self.markers = markers
        self.loaded = loaded
        self._lengths: dict[int, int] = {}

    def text(self, group: Group, completion: Completion) -> str:
        """Return the answer, or the whole text where the marker is missing."""
        marker = self.markers[group.prompt.problem.task]
        answer = find_answer(completion.text, marker)
        return completion.text.strip() if answer is None else answer

    def start(self, group: Group, completion: Completion) -> int | None:
        """Find the index of the answer's first token; ``None`` without a marker.

        Characters are counted token by token, which is exact except for characters that several tokens share.
        """
        marker = self.markers[group.prompt.problem.task]
        position = completion.text.rfind(marker) if marker else -1
        if position < 0:
            return None
        start, end = completion.spans[-1]  # of several turns, the text is the last one's
        ids, num_before = completion.token_ids[start:end], completion.num_sampled - (end - start)
        wanted, seen = position + len(marker), len(decode(self.loaded, ids[:1]))
        for index, token in enumerate(ids[1:], start=1):
            if seen >= wanted:
                return num_before + index
            seen += self._length(token)
        return completion.num_sampled

    def _length(self, token: int) -> int:
        if token not in self._lengths:  # after another token, since some decoders drop the first space of a text
            self._lengths[token] = len(decode(self.loaded, [token, token])) - len(decode(self.loaded, [token]))
        return self._lengths[token]
