"""A teacher on a server: it gives the log-probability of each sampled token, and nothing else.

    rollouts --sequences, shared among ranks--> server --all ranks' answers on every rank--> cache --> updates

A step's sequences are sent before anything is computed from them, so that a server that fails costs no work.

Left out: requests (``served_log_probs``), and distances over the vocabulary, for which a server would have to send it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.score import Anchor
from heliostat.train.logprobs.teacher import ScoreGroups, Teacher, TeacherCounts, TeacherFailed
from heliostat.train.teachers.log_prob_cache import digest_of
from heliostat.train.teachers.scoring_routes import Asked
from heliostat.train.teachers.served_log_probs import ServedLogProbs
from heliostat.types import Completion, Group, Prompt, TrainingGroup


@dataclass(frozen=True, kw_only=True)
class ServedTeacher(Teacher):
    """A teacher on a server.

    Attributes:
        log_probs: the server's.

    **Limits** On the same tokens and weights, the gradient is that of a teacher in this process, up to rounding.
    """

    log_probs: ServedLogProbs

    @property
    def described(self) -> str:
        return f"'{self.log_probs.model}' at {self.log_probs.server.url}"

    def prepare(self, groups: Sequence[Group], runtime: Runtime) -> None:
        """Send the sequences of a step that are not known yet, each from one rank, and give the answers to all."""
        asked = {
            digest_of(one): one
            for group in groups
            for prompt in [self.hinted(group.prompt)]
            for one in (asked_of(prompt, completion) for completion in group.completions)
        }
        mine = list(asked.values())[runtime.rank :: runtime.world_size]
        with runtime.raise_on_all_ranks():
            values = self.log_probs.read(mine)
        if runtime.world_size == 1:
            return
        for rank, (sequences, theirs) in enumerate(runtime.gather((mine, values))):
            for one, each in zip(sequences, theirs, strict=True) if rank != runtime.rank else ():
                self.log_probs.cache.add(digest_of(one), each, store=False)

    def read(self, groups: Sequence[TrainingGroup], temperature: float, score: ScoreGroups) -> list[Anchor]:
        """See ``Teacher.read``; ``prepare`` has sent the sequences of a run's step already.

        Raises:
            TeacherFailed: the temperature is not 1, that of the server's log-probabilities.
        """
        if temperature != 1.0:
            raise TeacherFailed(
                f"teacher {self.log_probs.server.url} gives log-probabilities at temperature 1, and the policy's are "
                f"at {temperature:g}; set rollout.temperature = 1"
            )
        rows = [(group.group.prompt, completion) for group in groups for completion in group.group.completions]
        values = iter(self.log_probs.read([asked_of(*row) for row in rows], again=True))
        return [
            tuple(
                _of_sampled(completion, torch.from_numpy(next(values).copy())) for completion in group.group.completions
            )
            for group in groups
        ]

    def take_counts(self) -> TeacherCounts:
        return self.log_probs.take_counts()

    def close(self) -> None:
        self.log_probs.close()


def asked_of(prompt: Prompt, completion: Completion) -> Asked:
    """Return a completion after its prompt, scored from its first sampled token on."""
    first = completion.spans[0][0]
    return Asked((*prompt.context_ids, *completion.token_ids), len(prompt.context_ids) + first)


def _of_sampled(completion: Completion, values: Tensor) -> Tensor:
    """Return the log-probabilities of the sampled tokens alone; those between them are an environment's."""
    first = completion.spans[0][0]
    return torch.cat([values[start - first : end - first] for start, end in completion.spans])
