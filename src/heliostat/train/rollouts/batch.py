"""The rollouts of a step, and their form in a checkpoint.

Left out: the schedule of sampling (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliostat.monitors.mismatch import Mismatch
from heliostat.rollout import RolloutCounts
from heliostat.tasks.judging import JudgeCounts
from heliostat.traces import TraceSource
from heliostat.train.logprobs.score import Anchor, sampler_anchor
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import Completion, Cut, Group, Mean, Problem, Prompt, StopReason, Turn, Verdict


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The verified groups of one step from all ranks, with their costs.

    Attributes:
        step, policy_step, version, sources: those of the request.
        counts, scored: token counts of sampling and scoring.
        logp_old: by group, the trainer's log-probabilities under the sampling policy; empty where not computed.
        max_gap, mismatch: differences of sampler and trainer under the sampling policy; ``None`` and empty without any.
        judged: the work of a judge.
        seconds: wall-clock seconds of sampling, in whichever thread.
        spans: seconds of its parts, where they were timed.
    """

    step: int
    policy_step: int
    version: int
    sources: Mapping[str, TraceSource]
    groups: list[Group]
    counts: RolloutCounts
    scored: UpdateCounts
    logp_old: list[Anchor]
    max_gap: float | None
    mismatch: dict[str, Mean] = field(default_factory=Mismatch().empty)
    judged: JudgeCounts = field(default_factory=JudgeCounts)
    seconds: float = 0.0
    spans: Mapping[str, float] = field(default_factory=dict)

    def anchors(self, version: int) -> list[Anchor] | None:
        """Return ``logp_old`` of the sampling policy; ``None`` where weights of ``version`` still are that policy.

        In a batch without signal a stored anchor would turn its rounding errors into a full step (``Updater``).
        """
        if version == self.version:
            return None
        return self.logp_old or [sampler_anchor(group) for group in self.groups]

    # -- in a checkpoint --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, for a checkpoint; values per token are concatenated."""
        completions = [completion for group in self.groups for completion in group.completions]
        anchors = [logp for anchor in self.logp_old for logp in anchor]
        return {
            "step": self.step,
            "policy_step": self.policy_step,
            "version": self.version,
            "sources": {task: asdict(source) for task, source in self.sources.items()},
            "counts": asdict(self.counts),
            "scored": asdict(self.scored),
            "judged": asdict(self.judged),
            "max_gap": self.max_gap,
            "mismatch": {key: [mean.total, mean.count] for key, mean in self.mismatch.items()},
            "groups": [_group_state(group) for group in self.groups],
            "token_ids": torch.tensor([token for one in completions for token in one.token_ids]),
            "logp_gen": torch.from_numpy(np.concatenate([one.logp_gen for one in completions])),
            "entropy": torch.from_numpy(np.concatenate([one.entropy for one in completions])),
            "logp_old": torch.cat(anchors) if anchors else None,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], problems: Mapping[tuple[str, str], Problem]) -> Rollouts:
        """Restore the rollouts of a ``state_dict``.

        Args:
            problems: the run's problems by task and id, which a checkpoint refers to.
        """
        lengths = [num for group in state["groups"] for num in group["lengths"]]
        token_ids = torch.split(state["token_ids"], lengths)
        sampled = [num for group in state["groups"] for num in _num_sampled(group)]
        logp_gen, entropy = (torch.split(state[key], sampled) for key in ("logp_gen", "entropy"))
        tokens = zip(token_ids, logp_gen, entropy, strict=True)
        groups = [_group_of(group, tokens, problems, state["policy_step"]) for group in state["groups"]]
        old = [] if state["logp_old"] is None else list(torch.split(state["logp_old"], sampled))
        pieces = iter(old)
        return cls(
            step=state["step"],
            policy_step=state["policy_step"],
            version=state["version"],
            sources={task: TraceSource(**source) for task, source in state["sources"].items()},
            groups=groups,
            counts=RolloutCounts(**state["counts"]),
            scored=UpdateCounts(**state["scored"]),
            logp_old=[tuple(next(pieces) for _ in group.completions) for group in groups] if old else [],
            max_gap=state["max_gap"],
            mismatch={key: Mean(*mean) for key, mean in state["mismatch"].items()},
            judged=JudgeCounts.of(state.get("judged", {})),
        )


def _group_state(group: Group) -> dict[str, Any]:
    problem = group.prompt.problem
    return {
        "problem": [problem.task, problem.problem_id],
        "prompt": [list(group.prompt.token_ids), list(group.prompt.prefix_ids), str(group.prompt.cut or "")],
        "lengths": [len(one.token_ids) for one in group.completions],
        "completions": [[str(one.stop_reason), one.text, one.seed] for one in group.completions],
        "turns": [[astuple(turn) for turn in one.turns] for one in group.completions],
        "prefix_turns": [astuple(turn) for turn in group.prompt.prefix_turns],
        "verdicts": [[one.reward, one.success, dict(one.scores), one.failure] for one in group.verdicts],
    }


def _group_of(
    state: Mapping[str, Any],
    tokens: Iterator[tuple[Tensor, Tensor, Tensor]],
    problems: Mapping[tuple[str, str], Problem],
    policy_step: int,
) -> Group:
    task, problem_id = state["problem"]
    token_ids, prefix_ids, cut = state["prompt"]
    completions = [
        _completion_of(next(tokens), StopReason(reason), text, seed, _turns_of(turns))
        for (reason, text, seed), turns in zip(state["completions"], _turns(state), strict=True)
    ]
    return Group(
        Prompt(
            problems[task, problem_id],
            tuple(token_ids),
            tuple(prefix_ids),
            Cut.parse(cut),
            _turns_of(state.get("prefix_turns", ())),
        ),
        tuple(completions),
        tuple(Verdict(*verdict) for verdict in state["verdicts"]),
        policy_step,
    )


def _turns(state: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """Return the turns of every completion of a group; checkpoints from before there were turns have none."""
    turns: Sequence[Sequence[Any]] = state.get("turns") or [()] * len(state["completions"])
    return turns


def _turns_of(stored: Sequence[Any]) -> tuple[Turn, ...]:
    return tuple(Turn(*values) for values in stored)


def _num_sampled(state: Mapping[str, Any]) -> list[int]:
    """Return the number of sampled tokens of every completion of a group."""
    return [
        sum(turn.num_tokens for turn in _turns_of(turns)) if turns else length
        for length, turns in zip(state["lengths"], _turns(state), strict=True)
    ]


def _completion_of(
    tokens: tuple[Tensor, Tensor, Tensor], reason: StopReason, text: str, seed: int, turns: tuple[Turn, ...]
) -> Completion:
    token_ids, logp_gen, entropy = tokens
    return Completion(tuple(token_ids.tolist()), logp_gen.numpy(), entropy.numpy(), reason, text, seed, turns)
