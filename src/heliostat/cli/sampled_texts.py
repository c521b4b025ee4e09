"""Sampled completions and conversations as JSON values, for ``heliostat sample --json``.

Left out: the same on a terminal (``tables``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.train import SampledConversations
    from heliostat.types import Completion, Group


def completions_json(model: str, groups: Sequence[Group]) -> dict[str, Any]:
    """Return prompts with their completions; ``reward`` is ``None`` where nothing was verified."""
    prompts = [
        {
            "prompt": group.prompt.problem.question,
            "completions": [
                {
                    "text": completion.text,
                    **_facts(completion),
                    "reward": group.verdicts[number].reward if group.verdicts else None,
                }
                for number, completion in enumerate(group.completions)
            ],
        }
        for group in groups
    ]
    return {"model": model, "prompts": prompts}


def conversations_json(model: str, sampled: Sequence[SampledConversations]) -> dict[str, Any]:
    """Return prompts with their trajectories turn by turn; one whose episodes all failed has none."""
    prompts = [
        {
            "prompt": one.prompt,
            "trajectories": [
                {**_facts(completion), "turns": [asdict(said) for said in conversation]}
                for completion, conversation in zip(one.group.completions, one.conversations, strict=True)
            ],
        }
        for one in sampled
    ]
    return {"model": model, "prompts": prompts}


def _facts(completion: Completion) -> dict[str, Any]:
    return {"num_sampled": completion.num_sampled, "stop_reason": str(completion.stop_reason)}
