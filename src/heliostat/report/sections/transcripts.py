"""Transcripts: completions of the same problem before and after training, side by side.

A trajectory is drawn as a conversation: every turn and every answer of the environment with its tokens and reward.

Everything here is untrusted text. It reaches the page only through a template, which escapes it. Problems are
shown in the order of the file, not chosen by their result. Left out: highlighting and rendering of any markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.report.charts.scales import format_value
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.read import Run, Transcript, Utterance

MAX_CHARACTERS = 2500
MAX_SPOKEN = 40
"""Turns and answers of a trajectory that are drawn, at most."""
SPOKEN_CHARACTERS = 800
"""Characters of one of them."""
STOP_REASONS = {
    "eos": "ended by itself",
    "stop_string": "stop string",
    "max_tokens": "cut off: token budget",
    "context_full": "cut off: context full",
    "turn_truncated": "cut off: token budget of a turn",
    "out_of_turns": "cut off: no turns left",
    "environment_done": "ended by the environment",
}


ROLES = {"assistant": "Model", "environment": "Environment"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One problem with its completions before and after training; either may be missing."""

    before: Transcript | None
    after: Transcript | None

    @property
    def problem(self) -> Transcript:
        """The completion that exists, for what both share: the prompt and the oracle answer."""
        side = self.before or self.after
        assert side is not None
        return side


def pair_up(transcripts: Sequence[Transcript]) -> list[Pair]:
    """Pair completions of the same problem, in file order; without any pair, return all problems one-sided.

    A run that was stopped has no ``after``; its latest evaluation stands in.
    """
    later = [row for row in transcripts if row.phase == "after"]
    if not later:
        during = [row for row in transcripts if row.phase == "during" and row.step > 0]
        latest = max((row.step for row in during), default=0)
        later = [row for row in during if row.step == latest]
    before = _first_by_problem([row for row in transcripts if row.phase == "before"])
    after = _first_by_problem(later)
    keys = [key for key in before if key in after] or list(dict.fromkeys([*before, *after]))
    return [Pair(before.get(key), after.get(key)) for key in keys]


def transcript_section(run: Run, limit: int) -> Html | None:
    """Write the run's first ``limit`` pairs; ``None`` where it kept no transcripts."""
    pairs = pair_up(run.transcripts)
    if not pairs:
        return None
    shown = pairs[:limit]
    count = (
        f"The first {len(shown)} of {len(pairs)} problems" if len(pairs) > len(shown) else f"All {len(pairs)} problems"
    )
    return fill("transcripts.html", count=count, pairs=[_pair(pair) for pair in shown])


def _pair(pair: Pair) -> dict[str, Any]:
    problem = pair.problem
    return {
        "task": problem.task.removeprefix("reasoning-gym/"),
        "name": problem.problem_id.removeprefix(f"{problem.task}/"),
        "answer": problem.answer,
        "prompt": _shortened(problem.prompt),
        "before": _side(pair.before, "Before"),
        "after": _side(pair.after, "After"),
    }


def _side(row: Transcript | None, name: str) -> dict[str, Any]:
    if row is None:
        return {"name": name, "completion": None}
    facts = [
        f"reward {format_value(row.reward)}" if row.reward is not None else None,
        f"{sum(turn.role == 'assistant' for turn in row.turns)} turns" if row.turns else None,
        f"{row.num_tokens} {'sampled ' * bool(row.turns)}tokens" if row.num_tokens is not None else None,
        STOP_REASONS.get(row.stop_reason, row.stop_reason) or None,
    ]
    return {
        "name": f"At step {row.step}" if row.phase == "during" else name,
        "completion": _shortened(row.completion),
        "turns": [_spoken(turn) for turn in row.turns[:MAX_SPOKEN]],
        "num_left": max(0, len(row.turns) - MAX_SPOKEN),
        "success": row.success,
        "facts": [fact for fact in facts if fact],
    }


def _spoken(turn: Utterance) -> dict[str, Any]:
    facts = [
        f"{turn.tokens} tokens" if turn.tokens is not None else None,
        f"reward {format_value(turn.reward)}" if turn.reward is not None else None,
    ]
    return {
        "role": turn.role,
        "name": ROLES[turn.role],
        "text": _shortened(turn.text, SPOKEN_CHARACTERS),
        "facts": [fact for fact in facts if fact],
    }


def _shortened(text: str, most: int = MAX_CHARACTERS) -> dict[str, Any]:
    return {"beginning": text[:most], "num_left": max(0, len(text) - most)}


def _first_by_problem(rows: Sequence[Transcript]) -> dict[tuple[str, str], Transcript]:
    first: dict[tuple[str, str], Transcript] = {}
    for row in rows:
        first.setdefault((row.task, row.problem_id), row)
    return first
