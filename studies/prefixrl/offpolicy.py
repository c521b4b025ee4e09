"""What a group may hold besides fresh samples: a trace among them, or prefixes that count as sampled.

    importance    weight min(pi_new / pi_gen, cap) on every token, pi_gen as the bank recorded it
    LUFFY         weight f'(pi_new) pi_new with f(x) = x / (x + gamma), the sampler taken as certain (pi_gen = 1)

Fresh samples are on-policy in both, ratio 1. Everything else (advantages over the whole group, update phase, counting)
is the library's. ``with_trained_prefix`` is a known bug as a control: a prefix that was prompt when sampled and is
completion when trained.

Left out: LUFFY's removal of the clip and its regularised variants (reconstruction: only the shaping is taken).

References: LUFFY, Yan et al. 2025, arXiv 2504.14945.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from heliostat.objectives.policy_gradient import Gain, PolicyGradient
from heliostat.traces import Trace
from heliostat.types import Completion, Group, TokenBatch, Verdict

Anchor = tuple[Tensor, ...]


@dataclass(frozen=True)
class Stored:
    """Put each problem's stored success into its group.

    Attributes:
        sampler: whose probability the trace's tokens are anchored at: the bank's, or none (taken as certain).
    """

    sampler: Literal["recorded", "certain"]

    def mix(self, groups: Sequence[Group], traces: Mapping[str, Trace]) -> tuple[list[Group], list[Anchor]]:
        """Return the groups with their traces, and the anchor of each group."""
        mixed = [self._with(group, traces[group.prompt.problem.problem_id]) for group in groups]
        return mixed, [tuple(torch.from_numpy(one.logp_gen) for one in group.completions) for group in mixed]

    def _with(self, group: Group, trace: Trace) -> Group:
        recorded = np.asarray(trace.logp_gen, dtype=np.float32)
        anchor = recorded if self.sampler == "recorded" else np.zeros_like(recorded)
        stored = Completion(trace.completion_ids, anchor, np.zeros_like(anchor), trace.stop_reason, trace.text)
        return replace(
            group,
            completions=(*group.completions, stored),
            verdicts=(*group.verdicts, Verdict(trace.reward, trace.success)),
        )


def with_trained_prefix(group: Group) -> Group:
    """The group as if its prefix had been sampled: scored, weighted and counted with the continuation."""
    prefix = group.prompt.prefix_ids
    unknown = np.zeros(len(prefix), dtype=np.float32)
    whole = tuple(
        replace(
            completion,
            token_ids=prefix + completion.token_ids,
            logp_gen=np.concatenate([unknown, completion.logp_gen]),
            entropy=np.concatenate([unknown, completion.entropy]),
        )
        for completion in group.completions
    )
    return replace(group, prompt=replace(group.prompt, prefix_ids=()), completions=whole)


@dataclass(frozen=True, kw_only=True)
class Luffy(PolicyGradient):
    """REINFORCE on fresh tokens; on tokens anchored at probability 1, the shaped ratio ``f(pi) A``."""

    name: ClassVar[str] = "luffy"
    gamma: float = 0.1

    def gain(self, logp_new: Tensor, tokens: TokenBatch, advantage: Tensor) -> Gain:
        pi = logp_new.detach().exp()
        stored = tokens.logp_old == 0.0
        weight = torch.where(stored, self.gamma * pi / (pi + self.gamma) ** 2, torch.ones_like(pi))
        return Gain(weight * advantage * logp_new, weight * advantage)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        return True
