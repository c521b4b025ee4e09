"""A teacher's view of the policy's samples, and the policy's distance to it.

    after sampling    the teacher reads every completion once: the log-probability of each token, or for distances over
                      the vocabulary the state before its head, which is small enough to keep
    in the update     the distance of each micro-batch; logits of both models exist for a few tokens at a time

A teacher may see another prompt than the policy, with a hint in it: both predict the same completion tokens.

Left out: loading a teacher, and teachers on a server (``train.teachers``); the distances themselves
(``objectives.distillation``).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from heliostat.models import LoadedModel
from heliostat.objectives.distillation import Distillation, sampled_reverse_kl
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import MAX_LOGITS, Policy
from heliostat.train.logprobs.score import Anchor
from heliostat.types import Group, Prompt, TrainingGroup

NUM_COPIES = 4
"""Tensors over the vocabulary that one distance keeps alive at once: both models' log-probabilities, and two more."""

Read = Callable[[Sequence[Row]], Tensor]
"""Computes one row per token of a micro-batch."""

ScoreGroups = Callable[[Sequence[TrainingGroup], Policy, Read], list[Anchor]]
"""Runs a policy over groups, in step with the other ranks."""


class TeacherFailed(RuntimeError):
    """A teacher on a server cannot be asked any further; the run can be continued once it can."""


class Lesson(NamedTuple):
    """The distance of a policy to its teacher on one micro-batch.

    Attributes:
        logp_new: of the policy, with its gradient.
        distance: of each token, with its gradient.
        logp_teacher: of the teacher, on the sampled tokens.
    """

    logp_new: Float[Tensor, " token"]
    distance: Float[Tensor, " token"]
    logp_teacher: Float[Tensor, " token"]


class TeacherCounts(NamedTuple):
    """The work of a teacher on a server: requests, the tokens of their sequences, and sequences known before."""

    calls: int = 0
    tokens: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Teacher(ABC):
    """A model that is not trained, and the distance to it that is.

    Attributes:
        alone: whether the distance is the whole loss, without an objective of rewards.
        hinted: maps a prompt of the policy to the teacher's.

    **Limits** A teacher with the policy's weights and prompts: distance 0, without gradient.
    """

    distillation: Distillation
    alone: bool = True
    hinted: Callable[[Prompt], Prompt] = lambda prompt: prompt

    @property
    @abstractmethod
    def described(self) -> str:
        """The teacher's name and size, as far as they are known."""

    @property
    def loaded(self) -> LoadedModel | None:
        """The model, if it runs in this process; only then are its FLOPs counted."""
        return None

    @abstractmethod
    def read(self, groups: Sequence[TrainingGroup], temperature: float, score: ScoreGroups) -> list[Anchor]:
        """Read every completion of groups that the teacher sees (``sees``), by group; see ``Row.taught``.

        Args:
            temperature: of the policy, and so of the teacher.

        Raises:
            TeacherFailed: the teacher is on a server that cannot be used.
        """

    @abstractmethod
    def prepare(self, groups: Sequence[Group], runtime: Runtime) -> None:
        """Do what may fail about a step's groups before anything is computed from them; all ranks call it together.

        Raises:
            TeacherFailed: as ``read``.
        """

    @abstractmethod
    def take_counts(self) -> TeacherCounts:
        """Return this rank's requests since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Cancel requests; none may follow."""

    def sees(self, training: TrainingGroup) -> TrainingGroup:
        """Return a group as the teacher sees it."""
        group = dataclasses.replace(training.group, prompt=self.hinted(training.group.prompt))
        return dataclasses.replace(training, group=group)

    def lesson(self, policy: Policy, rows: Sequence[Row]) -> Lesson:
        """Compute the distance of ``policy`` on rows that the teacher has read, from the sampled tokens alone."""
        taught = _taught_of(rows, policy)
        logp_new = policy.log_probs(rows)
        current = torch.split(logp_new.detach(), [row.num_tokens for row in rows])
        old = [here if row.logp_old is None else row.logp_old for row, here in zip(rows, current, strict=True)]
        logp_old = torch.cat([each.to(policy.device) for each in old])
        return Lesson(logp_new, sampled_reverse_kl(logp_new, taught, logp_old), taught)


@dataclass(frozen=True, kw_only=True)
class ModelTeacher(Teacher):
    """A teacher in this process.

    Attributes:
        policy: the teacher; or the trained policy itself, at its weights of the moment.
    """

    policy: Policy

    @property
    def described(self) -> str:
        return f"'{self.policy.loaded.name}' ({self.policy.loaded.num_parameters / 1e6:.3g}M parameters)"

    @property
    def loaded(self) -> LoadedModel:
        return self.policy.loaded

    def read(self, groups: Sequence[TrainingGroup], temperature: float, score: ScoreGroups) -> list[Anchor]:
        self.policy.temperature = temperature
        return score(groups, self.policy, self.read_rows)

    def read_rows(self, rows: Sequence[Row]) -> Tensor:
        """Compute for every completion token, in row order, its log-probability or the state that the head reads."""
        return self.policy.hidden(rows) if self.distillation.needs_logits else self.policy.log_probs(rows)

    def prepare(self, groups: Sequence[Group], runtime: Runtime) -> None:
        """Do nothing: its forward passes are in step with those of other ranks."""

    def take_counts(self) -> TeacherCounts:
        return TeacherCounts()

    def close(self) -> None:
        """Do nothing: no work outlasts a call."""

    def lesson(self, policy: Policy, rows: Sequence[Row]) -> Lesson:
        """Compute the distance of ``policy`` on rows that the teacher has read."""
        if self.distillation.needs_logits:
            return self._over_vocabulary(policy, rows, _taught_of(rows, policy))
        return super().lesson(policy, rows)

    def _over_vocabulary(self, policy: Policy, rows: Sequence[Row], taught: Tensor) -> Lesson:
        """Compute distances of whole distributions, at most ``MAX_LOGITS`` numbers at a time.

        Models of one tokenizer may pad their vocabularies to different sizes; the distance is over the common part.
        """
        own, other, temperature = policy.loaded.head, self.policy.loaded.head, policy.temperature

        def of_chunk(hidden: Tensor, read: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = own.logits(hidden) / temperature
            with torch.no_grad():
                theirs = other.logits(read) / temperature
            logp, logp_teacher = logits.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
            of_tokens = [each.gather(1, target[:, None]).squeeze(1) for each in (logp, logp_teacher)]
            size = min(logits.shape[1], theirs.shape[1])
            if logits.shape != theirs.shape:
                logp, logp_teacher = (each[:, :size].log_softmax(dim=-1) for each in (logits, theirs))
            return of_tokens[0], self.distillation.of_logits(logp, logp_teacher), of_tokens[1]

        targets = torch.tensor([token for row in rows for token in row.completion.sampled_ids], device=policy.device)
        width = max(int(model.config.get_text_config().vocab_size) for model in (own.model, other.model))
        size = max(1, MAX_LOGITS // (NUM_COPIES * width))
        hidden = policy.hidden(rows)
        if hidden.shape[0] <= size:
            return Lesson(*of_chunk(hidden, taught, targets))
        chunks = zip(*(torch.split(each, size) for each in (hidden, taught, targets)), strict=True)
        pieces = [checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks]
        return Lesson(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _taught_of(rows: Sequence[Row], policy: Policy) -> Tensor:
    for row in rows:
        if row.taught is None:
            raise ValueError(f"no teacher has read the completion of {row.prompt.problem.described}")
    return torch.cat([row.taught for row in rows if row.taught is not None]).to(policy.device)
