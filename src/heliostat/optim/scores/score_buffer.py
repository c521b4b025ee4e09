"""Score functions between a backward pass and an optimizer step: one dictionary of gradients per sample.

Left out: the choice of samples, and the use of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from heliostat.optim.distributed.replicas import gather_rows, is_sharded, without_gradient_averaging
from heliostat.optim.distributed.sharded_tensors import local_shard

Score = dict[Tensor, Tensor]
"""The gradient of one sample's log-probability, by parameter; parameters it does not reach are absent."""

ScoreRows = dict[Tensor, Tensor]
"""Several scores by parameter, one per row: this rank's shard of ``[m, *parameter.shape]``."""


@dataclass(slots=True)
class ScoreBuffer:
    """Scores collected since the last step.

    Attributes:
        pending: scores collected one by one.
        ready: scores that were given all at once, as rows.
    """

    pending: list[Score] = field(default_factory=list)
    ready: ScoreRows = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether no score is waiting for a step."""
        return not self.pending and not self.ready

    def clear(self) -> None:
        """Forget the scores that no step has taken."""
        self.pending, self.ready = [], {}

    @contextmanager
    def backward_inside(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Turn the backward pass inside into one score, and put the gradients back as they were.

        A DDP model that runs inside keeps each rank's own score.
        """
        kept = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            with without_gradient_averaging():
                yield
            score = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
            if not score:
                raise RuntimeError(
                    "score() saw no backward pass through the optimizer's parameters: call log_prob.backward() inside "
                    "it, of the model that is trained"
                )
            self.pending.append(score)
        finally:
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient

    def differentiate(self, log_probs: Float[Tensor, ...], parameters: Sequence[Tensor]) -> None:
        """Make each entry of ``log_probs`` one score; gradients in place are not touched.

        Raises:
            RuntimeError: an entry depends on none of the parameters.
        """
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        entries = log_probs.reshape(-1)
        for index, log_prob in enumerate(entries):
            last = index == len(entries) - 1
            found = torch.autograd.grad(log_prob, wanted, retain_graph=not last, allow_unused=True)
            score = {p: u for p, u in zip(wanted, found, strict=True) if u is not None}
            if not score:
                raise RuntimeError(
                    "a score reaches none of the optimizer's parameters: differentiate the model that is trained, and "
                    "with reentrant checkpointing use 'with optimizer.score(): log_prob.backward()', or use_reentrant="
                    "False"
                )
            self.pending.append(score)

    def add(self, scores: Mapping[Tensor, Tensor], parameters: Sequence[Tensor]) -> None:
        """Add ready-made scores: one tensor per parameter, with one score per first index.

        Raises:
            RuntimeError: not as many for every parameter, of other shapes, or of a tensor that is none of them.
        """
        known = set(parameters)
        for parameter, rows in scores.items():
            if parameter not in known:
                raise RuntimeError("scores must be of the optimizer's own parameters, by parameter")
            if rows.shape[1:] != parameter.shape:
                raise RuntimeError(
                    f"the scores of a parameter of shape {tuple(parameter.shape)} must have shape [sample, "
                    f"*parameter.shape], got {tuple(rows.shape)}"
                )
        num_scores = {len(rows) for rows in scores.values()}
        if len(num_scores) != 1:
            raise RuntimeError(f"scores must hold as many samples for every parameter, got {sorted(num_scores)}")
        if self.pending or self.ready:
            raise RuntimeError("a step takes scores one by one or all at once, not both")
        self.ready = dict(scores)

    def take(self, num_scores: int, parameters: Sequence[Tensor], ranks: dist.ProcessGroup | None) -> list[Score]:
        """Empty the buffer; with a process group, every rank's scores, in the same order on each.

        Scores of sharded weights are of all ranks' rows already.

        Raises:
            RuntimeError: this process, or another, does not have exactly ``num_scores``.
        """
        scores, self.pending, self.ready = self.pending or _singly(self.ready), [], {}
        if ranks is None or is_sharded(parameters):
            _check([len(scores)], num_scores)
            return scores
        device = parameters[0].device
        _check(gather_rows(torch.tensor([len(scores)], device=device), ranks).tolist(), num_scores)
        return [one for score in scores for one in _everywhere(score, parameters, ranks)]

    def take_rows(
        self, num_scores: int, parameters: Sequence[Tensor], ranks: dist.ProcessGroup | None
    ) -> tuple[int, ScoreRows]:
        """Empty the buffer like ``take``, and return the number of scores and this rank's shard of their rows.

        The row of a score that does not reach a parameter is zero.
        """
        if self.ready and ranks is None:
            rows, self.ready = self.ready, {}
            _check([len(next(iter(rows.values())))], num_scores)
            return num_scores, rows
        scores = self.take(num_scores, parameters, ranks)
        reached = [parameter for parameter in parameters if any(parameter in score for score in scores)]
        return len(scores), {parameter: _stacked(scores, parameter) for parameter in reached}


def _check(got: Sequence[int], wanted: int) -> None:
    """Raise on every rank where one of them lacks scores, so that none waits for it."""
    if any(number != wanted for number in got):
        found = str(got[0]) if len(got) == 1 else f"{', '.join(map(str, got))} on the ranks of its process group"
        raise RuntimeError(
            f"a step takes {wanted} scores and got {found}: run 'with optimizer.score(): "
            "log_prob.backward()' for each sample, after zero_grad(), or pass score_closure"
        )


def _singly(rows: ScoreRows) -> list[Score]:
    """Split rows into single scores."""
    num_scores = len(next(iter(rows.values()))) if rows else 0
    return [{p: part[index] for p, part in rows.items()} for index in range(num_scores)]


def _stacked(scores: Sequence[Score], parameter: Tensor) -> Tensor:
    """Stack this rank's shard of one parameter's scores, without a copy of a single one."""
    parts = [local_shard(score[parameter], parameter) if parameter in score else None for score in scores]
    if len(parts) == 1 and parts[0] is not None:
        return parts[0][None]
    return torch.stack(
        [torch.zeros_like(local_shard(parameter, parameter)) if part is None else part for part in parts]
    )


def _everywhere(score: Score, parameters: Sequence[Tensor], ranks: dist.ProcessGroup) -> list[Score]:
    """Gather one score of every rank, as one flat vector each."""
    flat = torch.cat([score.get(p, torch.zeros_like(p)).reshape(-1) for p in parameters])
    received = gather_rows(flat[None], ranks)
    sizes = [parameter.numel() for parameter in parameters]
    return [
        {p: u.view_as(p) for p, u in zip(parameters, torch.split(vector, sizes), strict=True)} for vector in received
    ]
