"""Steps of the actor, given its policy gradient g: the rank-1 family, its exact limit, and plain steps.

    rank1         d = (damping I + (1/m) sum_k u_k u_k')^-1 g    u_k: scores of drawn samples, their mean, or g
    eva           the same with a rank-one curvature per layer, without a second backward pass
    sample-space  d = S'(damping I + SS'/B)^-1 A / B             all B scores: the exact empirical natural gradient
    sgd, adam     d = g, and Adam's step

Each has its settings, builds its optimizer, and supplies the optimizer's inputs other than g.

Left out: the optimizers themselves (``heliostat.optim``; ``sample_space``), and g.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from heliostat.config import nearest
from heliostat.control.actor import Actor, Transitions
from heliostat.control.sample_space import SampleSpaceNaturalGradient
from heliostat.optim import Eva, Rank1NaturalGradient

LogProb = Float[Tensor, " row"]
SCORES_AT_ONCE = 8
"""From this many scores on, one vectorised pass is quicker than as many backward passes."""


class Direction(Protocol):
    """Settings of one kind of actor step.

    Attributes:
        damping: divisor of the learning rate in the effective one; 1 where there is none.
    """

    name: ClassVar[str]

    @property
    def damping(self) -> float: ...

    def build(self, actor: Actor, lr: float) -> torch.optim.Optimizer:
        """The optimizer of the actor's parameters."""

    def step(
        self, optimizer: Any, actor: Actor, rows: Transitions, draws: np.random.Generator, kept: LogProb | None = None
    ) -> None:
        """One step on the gradients in place (of minus the objective).

        Args:
            kept: log-probabilities of the rows with their graph, if it was kept; spares the scores' forward pass.
        """


@dataclass(frozen=True, kw_only=True)
class Rank1:
    """The rank-1 natural gradient and its form with m scores; ``num_scores=1`` is the paper's method.

    The defaults were chosen by the races of studies/rank1: one score gained nothing over the plain gradient there.

    Attributes:
        damping: Fisher matrix in directions without scores; the effective learning rate is lr / damping.
        num_scores: m, the samples drawn per step, without replacement; more than the batch has: all of it.
        u: ``score``: grad log pi(a|s) of each drawn sample; ``mean_score``: of the m samples' mean; ``grad``: g itself.
        block: one Fisher matrix over all actor parameters, one per tensor, or one per layer.
        ema: weight of the old mean in a running mean of the scores; 0: no memory.
        momentum: of d.
        max_kl: shortens the step so that its divergence in this Fisher matrix is at most this, in nats; with a large
            learning rate the step is ``sqrt(2 max_kl / g'd) d``.

    Limits:
        damping -> infinity: ``sgd`` with lr / damping.
        num_scores = batch size: the exact empirical natural gradient, ``sample-space``.
        u = "grad": ``d = g / (damping + |g|^2)``.
        u = "mean_score" over the whole batch: ``|u|^2`` is about tr F / B, so ``sgd`` again.
    """

    name: ClassVar[str] = "rank1"
    damping: float = 0.1
    num_scores: int = 16
    u: Literal["score", "mean_score", "grad"] = "score"
    block: Literal["global", "param", "layer"] = "global"
    ema: float = 0.0
    momentum: float = 0.0
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.u not in _SUPPLY:
            raise ValueError(f"u must be one of {', '.join(_SUPPLY)}, got '{self.u}'")
        if self.num_scores < 1:
            raise ValueError(f"num_scores must be at least 1, got {self.num_scores}")

    def build(self, actor: Actor, lr: float) -> Rank1NaturalGradient:
        settings = asdict(self)
        del settings["u"]
        settings["num_scores"] = self.num_scores if self.u == "score" else 1
        settings["source"] = "gradient" if self.u == "grad" else "scores"
        return Rank1NaturalGradient(actor.named_parameters(), lr=lr, **settings)

    def step(
        self,
        optimizer: Rank1NaturalGradient,
        actor: Actor,
        rows: Transitions,
        draws: np.random.Generator,
        kept: LogProb | None = None,
    ) -> None:
        _SUPPLY[self.u](self, optimizer, actor, rows, draws, kept)

    def drawn(self, rows: Transitions, draws: np.random.Generator) -> Int[Tensor, " sample"]:
        """The numbers of ``num_scores`` of the rows, every one once if there are no more."""
        if self.num_scores >= len(rows):
            return torch.arange(len(rows), device=rows.actions.device)
        index = draws.choice(len(rows), self.num_scores, replace=False)
        return torch.as_tensor(index, device=rows.actions.device)


def _by_scores(
    rule: Rank1,
    optimizer: Rank1NaturalGradient,
    actor: Actor,
    rows: Transitions,
    draws: np.random.Generator,
    kept: LogProb | None,
) -> None:
    sample = rule.drawn(rows, draws)
    optimizer.num_scores = len(sample)
    if len(sample) < SCORES_AT_ONCE:
        optimizer.step(score_closure=lambda: _log_prob(actor, rows, sample, kept))
    else:
        optimizer.step(scores=actor.scores(rows.take(sample)))


def _by_mean_score(
    rule: Rank1,
    optimizer: Rank1NaturalGradient,
    actor: Actor,
    rows: Transitions,
    draws: np.random.Generator,
    kept: LogProb | None,
) -> None:
    sample = rule.drawn(rows, draws)
    optimizer.step(score_closure=lambda: _log_prob(actor, rows, sample, kept).mean())


def _by_gradient(
    rule: Rank1,
    optimizer: Rank1NaturalGradient,
    actor: Actor,
    rows: Transitions,
    draws: np.random.Generator,
    kept: LogProb | None,
) -> None:
    optimizer.step()


_SUPPLY = {"score": _by_scores, "mean_score": _by_mean_score, "grad": _by_gradient}


def _log_prob(
    actor: Actor, rows: Transitions, sample: Int[Tensor, " sample"], kept: LogProb | None
) -> Float[Tensor, " sample"]:
    return actor.acting_log_prob(rows.take(sample)) if kept is None else kept[sample]


class _FromGradients:
    """A direction whose optimizer needs nothing but the gradients in place."""

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        actor: Actor,
        rows: Transitions,
        draws: np.random.Generator,
        kept: LogProb | None = None,
    ) -> None:
        optimizer.step()


@dataclass(frozen=True, kw_only=True)
class EvaLayers(_FromGradients):
    """Eva: per layer, a rank-one curvature from the means of inputs and output gradients of the loss itself.

    Those means carry the advantages: this curvature is that of the loss's gradient, not of scores. Parameters outside
    linear layers, like the log-deviation of a Gaussian policy, are stepped by AdamW at ``adamw_lr``.

    Attributes:
        damping: curvature in directions without means; the effective learning rate is lr / damping.
        ema: weight of the old mean in the running means.
        momentum: of d.
        max_kl: shortens the step so that its divergence in this curvature is at most this; empty: never.

    Limits:
        damping -> infinity: ``sgd`` with lr / damping, on the linear layers.
    """

    name: ClassVar[str] = "eva"
    damping: float = 0.03
    ema: float = 0.0
    momentum: float = 0.0
    max_kl: float | None = None
    adamw_lr: float = 1e-3

    def build(self, actor: Actor, lr: float) -> Eva:
        return Eva(actor.layers(), lr=lr, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class SampleSpace:
    """The exact damped natural gradient of the batch, as a policy gradient with transformed advantages.

    Attributes:
        damping: added to the empirical Fisher matrix.
        momentum: of d.
        max_kl: shortens the step so that its divergence in the damped Fisher matrix is at most this, in nats.

    Limits:
        damping -> infinity: ``sgd`` with lr / damping.
        Equal to ``rank1`` with as many scores as the batch has.
    """

    name: ClassVar[str] = "sample-space"
    damping: float = 0.1
    momentum: float = 0.0
    max_kl: float | None = None

    def build(self, actor: Actor, lr: float) -> SampleSpaceNaturalGradient:
        return SampleSpaceNaturalGradient(actor.parameters, lr=lr, **asdict(self))

    def step(
        self,
        optimizer: SampleSpaceNaturalGradient,
        actor: Actor,
        rows: Transitions,
        draws: np.random.Generator,
        kept: LogProb | None = None,
    ) -> None:
        optimizer.step(scores=actor.scores(rows), advantages=rows.advantages)


@dataclass(frozen=True, kw_only=True)
class Gradient(_FromGradients):
    """The plain policy gradient: ``theta <- theta + lr * g``, with optional momentum."""

    name: ClassVar[str] = "sgd"
    damping: ClassVar[float] = 1.0
    momentum: float = 0.0

    def build(self, actor: Actor, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(actor.parameters, lr=lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class AdamGradient(_FromGradients):
    """Adam on the policy gradient."""

    name: ClassVar[str] = "adam"
    damping: ClassVar[float] = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5

    def build(self, actor: Actor, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(actor.parameters, lr=lr, betas=self.betas, eps=self.eps)


DIRECTIONS: dict[str, type[Any]] = {
    direction.name: direction for direction in (Rank1, EvaLayers, SampleSpace, Gradient, AdamGradient)
}


def direction_of(given: Direction | str) -> Direction:
    """Return a direction as it is, or build the named one with its default settings.

    Raises:
        ValueError: unknown name, or something that is no direction.
    """
    if not isinstance(given, str):
        if isinstance(given, type) or not callable(getattr(given, "build", None)):
            raise ValueError(f"direction must be a name or a direction with its settings, like Rank1(), got {given!r}")
        return given
    if given not in DIRECTIONS:
        raise ValueError(f"unknown direction '{given}'{nearest(given, DIRECTIONS)}; known: {', '.join(DIRECTIONS)}")
    made: Direction = DIRECTIONS[given]()
    return made
