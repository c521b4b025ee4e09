"""A task: problems with a train / held-out split, and the verifiers that turn an answer into a verdict.

Left out: loading problems (``sources.reasoning_gym``, ``sources.data_files``), and running verifiers
(``verifier_pool.pool``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from heliostat.cards import Card
from heliostat.tasks.verifiers.builtin import Verifier
from heliostat.types import Completion, Problem, StopReason, Turn, Verdict


@dataclass(frozen=True, slots=True)
class WeightedVerifier:
    """One verifier of a task.

    Attributes:
        weight: its share of a shaped reward; a verifier of weight 0 is recorded but decides nothing.
        sees: ``answer``: the text after the answer marker; ``completion``: the whole completion. Both stripped.
    """

    name: str
    verifier: Verifier
    weight: float = 1.0
    sees: Literal["answer", "completion"] = "answer"


FULL_MARKS_WITHIN = 1e-9
"""A score this near to 1 is full marks: the float64 error of sums of tenths, and no partial credit."""

ENVIRONMENT = "environment"
"""The name of an environment's return among the scores of a verdict."""

Teacher = Callable[[Problem, np.random.Generator, float], str | None]
"""Shows how a problem is worked out, as a text to imitate; ``None`` where it cannot.

The number is how far the supervised training has come, from 0 to 1.
"""


def by_the_book(problem: Problem, rng: np.random.Generator, progress: float) -> str | None:
    """Return the problem's own solution, or its answer if it has no solution."""
    return problem.solution if problem.solution is not None else problem.answer


@dataclass(frozen=True, slots=True)
class Slips:
    """Deliberate mistakes in demonstrations of episodes.

    Attributes:
        share: share of the demonstrations that end early or wrongly.
        after: share of the supervised training before mistakes begin.
    """

    share: float = 0.0
    after: float = 0.0

    def share_at(self, progress: float) -> float:
        """Return the share of mistakes once supervised training has come to ``progress``, from 0 to 1."""
        return self.share if progress >= self.after else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Task(Card):
    """Problems and the verifiers that score their answers.

    Attributes:
        train: problems to train on.
        heldout: problems to evaluate on; no question text occurs in both.
        verifiers: every one of positive weight must give full marks for a success; none: rewards are an environment's.
        shaped: whether the reward is the weighted sum of raw scores, instead of 1.0 for a success and 0.0 otherwise.
        answer_after: marker before the answer, which follows its last occurrence; empty: the whole completion.
        timeout_s: wall-clock limit of one verdict, in seconds.
        memory_mb: memory that one verdict may take above its worker's size after loading, in MiB.
        num_workers: verifier processes this task asks for.
        on_failure: ``zero``: a verifier failure costs that sample its reward; ``stop``: it ends the run.
        teacher: the source of demonstrations for supervised steps.
        slips: mistakes in demonstrations of episodes, which come from the environment instead of the teacher.
        notes: messages about dropped rows and other properties of the data.
    """

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    verifiers: tuple[WeightedVerifier, ...]
    shaped: bool = False
    answer_after: str = ""
    timeout_s: float = 5.0
    memory_mb: int = 1024
    num_workers: int = 1
    on_failure: Literal["zero", "stop"] = "zero"
    teacher: Teacher = by_the_book
    slips: Slips = Slips()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def verdict(self, scores: Mapping[str, float | None], failure: str = "") -> Verdict:
        """Combine the verifiers' scores into one verdict.

        With scores s_i and weights w_i of the verifiers that apply (score not ``None``):
        ``success = all(|s_i - 1| <= 1e-9 for w_i > 0)``, and ``reward = sum_i w_i s_i`` if shaped, else ``1[success]``.

        Args:
            scores: by verifier name; ``None``: that verifier does not apply to this problem.
            failure: empty, or how a verifier failed.

        Limits:
            A failure gives reward 0 and no success, regardless of the other verifiers; if no verifier of positive
            weight applies, that is a failure too.
        """
        known = {name: score for name, score in scores.items() if score is not None}
        counted = [weighted for weighted in self.verifiers if weighted.weight > 0 and weighted.name in known]
        if not failure and not counted:
            failure = "no verifier applies to this problem"
        if failure:
            return Verdict(reward=0.0, success=False, scores=known, failure=failure)
        success = all(abs(known[weighted.name] - 1) <= FULL_MARKS_WITHIN for weighted in counted)
        shaped = sum(weighted.weight * known[weighted.name] for weighted in counted)
        return Verdict(reward=shaped if self.shaped else float(success), success=success, scores=known)

    def trajectory_verdict(self, completion: Completion, given: Sequence[Turn] = ()) -> Verdict | None:
        """Return the verdict of an environment on a trajectory; ``None`` where the verifiers judge it.

        The return is ``R = sum_k r_k`` over the turns' rewards: one return per trajectory, regardless of their number.
        Success is what the environment says, by default ``R >= 1``.

        Args:
            given: turns that were replayed before the completion; they count too.

        Limits:
            Verifiers judge completions without turns, and trajectories whose turns have no reward at all. In a task
            without verifiers, such a trajectory has return 0.
        """
        turns = (*given, *completion.turns)
        rewards = [turn.reward for turn in turns if turn.reward is not None]
        if not completion.turns or (self.verifiers and not rewards):
            return None
        total = float(sum(rewards))
        said = [turn.success for turn in turns if turn.success is not None]
        success = said[-1] if said else total >= 1 - FULL_MARKS_WITHIN
        return Verdict(reward=total, success=success, scores={ENVIRONMENT: total})


def ended_in_silence(completion: Completion, given: Sequence[Turn] = ()) -> bool:
    """Return whether an environment ended an episode itself, and gave neither a reward nor a success in any turn.

    An episode that a limit ended may have been about to earn one, so its silence says nothing about the environment.

    Args:
        given: turns that were replayed before the completion.
    """
    turns = (*given, *completion.turns)
    spoke = any(turn.reward is not None or turn.success is not None for turn in turns)
    return completion.stop_reason is StopReason.ENVIRONMENT_DONE and not spoke
