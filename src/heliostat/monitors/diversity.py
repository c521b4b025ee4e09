"""The diversity of the completions of one group: answers, n-grams, loops, compression, duplicate prompts.

Left out: the statistics themselves (``answers``, ``repetition``), and grading (``tasks``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heliostat.monitors.answers import collision, top_share
from heliostat.monitors.repetition import compressed_share, distinct_share, loop_period, repeated_share
from heliostat.monitors.signal import Moments, Signal, total
from heliostat.types import Batch, Completion, Group, Mean

AnswerOf = Callable[[Group, Completion], str]
"""The answer in a completion, written so that equal answers are equal texts."""


@dataclass(frozen=True)
class AnswerDiversity(Signal):
    """Collision, effective number and top share of answers, and the number of distinct right ones per group."""

    answer_of: AnswerOf

    def measure(self, batch: Batch) -> dict[str, Mean]:
        collisions, tops, right = [], [], []
        for group in batch.groups:
            answers = [self.answer_of(group.group, completion) for completion in group.group.completions]
            collisions.append(collision(answers))
            tops.append(top_share(answers))
            found = {a for a, verdict in zip(answers, group.group.verdicts, strict=True) if verdict.success}
            right.append(float(len(found)) if found else None)
        return {
            "answers/collision": total(collisions),
            "answers/top_share": total(tops),
            "answers/distinct_correct": total(right),
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        numbers = super().finish(moments)
        if numbers.get("answers/collision", 0.0) > 0:
            numbers["answers/effective"] = 1.0 / numbers["answers/collision"]
        return numbers


@dataclass(frozen=True)
class TextRepetition(Signal):
    """rep-4, loops, distinct-1, distinct-4 and compression ratio of a group."""

    def measure(self, batch: Batch) -> dict[str, Mean]:
        groups = [group.group for group in batch.groups]
        ids = [[completion.sampled_ids for completion in group.completions] for group in groups]
        flat = [tokens for texts in ids for tokens in texts]
        return {
            "text/rep4": total(repeated_share(tokens, 4) for tokens in flat),
            "text/loops": total(float(loop_period(tokens) is not None) for tokens in flat),
            "text/distinct1": total(distinct_share(texts, 1) for texts in ids),
            "text/distinct4": total(distinct_share(texts, 4) for texts in ids),
            "text/zlib": total(compressed_share("\n".join(c.text for c in group.completions)) for group in groups),
        }


@dataclass(frozen=True)
class DuplicatePrompts(Signal):
    """Share of groups whose prompt an earlier group of the same step had already; 0 in a pass over distinct prompts.

    In environments problems may differ although their prompts are equal (a hidden number), so groups of trajectories
    are compared by prompt and problem.

    **Limits** Ranks do not see each other's prompts: a prompt that two ranks hold is not counted.
    """

    def measure(self, batch: Batch) -> dict[str, Mean]:
        prompts = [_identity(group.group) for group in batch.groups]
        return {"text/duplicate_prompts": Mean(float(len(prompts) - len(set(prompts))), len(prompts))}


def _identity(group: Group) -> tuple[object, ...]:
    prompt = group.prompt
    if any(completion.turns for completion in group.completions):
        return prompt.context_ids, prompt.problem.task, prompt.problem.problem_id
    return (prompt.context_ids,)
