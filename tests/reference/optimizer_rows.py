"""The optimizers that must conform, as data, and one driver that trains a classifier with any of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heliostat.optim import RENG, RING, Eva, KroneckerProduct, KroneckerSum, Rank1NaturalGradient, RKalman
from heliostat.optim.conformance import Classifier as Classifier


@dataclass(frozen=True)
class Row:
    """One optimizer with settings under which it can do the suite's problems.

    Attributes:
        make: over a model; further keyword arguments override settings.
        takes_groups: whether parameters can be handed over in groups.
        convex_gain: what multiplies its learning rate on the convex problem, whose curvature is small.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer]
    takes_groups: bool = False
    convex_gain: float = 4.0


def over(params: nn.Module | list[dict[str, Any]]) -> Any:
    return params.named_parameters() if isinstance(params, nn.Module) else params


def rank1(params, **settings):
    return Rank1NaturalGradient(over(params), **{"lr": 0.5, "damping": 1.0, **settings})


def rkalman(params, **settings):
    return RKalman(over(params), **{"covariance": 1.0, "forgetting": 0.9, "num_scores": 4, **settings})


def reng(params, base, **settings):
    return RENG(base(over(params)), **{"rho": 0.05, **settings})


def sgd(params):
    return torch.optim.SGD(params, lr=0.5, momentum=0.5)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.05, weight_decay=0.0)


def eva(model, **settings):
    return Eva(model, **{"lr": 0.3, "damping": 1.0, "momentum": 0.5, "adamw_lr": 0.02, **settings})


def ring(model, **settings):
    return RING(model, **{"lr": 0.3, "damping": 0.03, "momentum": 0.0, "adamw_lr": 0.02, **settings})


def kronecker_sum(model, **settings):
    return KroneckerSum(model.named_parameters(), **{"lr": 0.05, **settings})


def kronecker_product(model, **settings):
    return KroneckerProduct(model.named_parameters(), **{"lr": 0.05, **settings})


ROWS = [
    Row("rank1", rank1, takes_groups=True),
    Row("rank1-four", lambda p, **s: rank1(p, num_scores=4, momentum=0.5, **s), takes_groups=True),
    Row("rank1-averaged", lambda p, **s: rank1(p, ema=0.5, **s), takes_groups=True),
    Row("rank1-layer", lambda p, **s: rank1(p, block="layer", max_kl=0.5, **s)),
    Row("eva", eva),
    Row("ring", lambda m, **s: ring(m, rho=0.1, **s)),
    Row("ring-exact", lambda m, **s: ring(m, damping_form="exact", inverse_every=3, **s)),
    Row(
        "ring-empirical",
        lambda m, **s: ring(m, empirical=True, statistics_every=2, max_kl=0.5, **s),
    ),
    Row("reng-difference", lambda p, **s: reng(p, sgd, **s), takes_groups=True),
    Row("reng-double", lambda p, **s: reng(p, adamw, mode="double-backward", **s), takes_groups=True),
    Row("rkalman", rkalman, takes_groups=True, convex_gain=1.0),
    Row(
        "rkalman-low-rank",
        lambda p, **s: rkalman(p, form="low-rank", rank=6, **s),
        takes_groups=True,
        convex_gain=1.0,
    ),
    Row("kronecker-sum", kronecker_sum),
    Row("kronecker-sum-blocks", lambda m, **s: kronecker_sum(m, block_size=3, **s)),
    Row("kronecker-product", kronecker_product),
    Row("kronecker-product-blocks", lambda m, **s: kronecker_product(m, block_size=3, **s)),
]


def row_name(row: Row) -> str:
    return row.name


def batch(num: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs 0..5 with labels that depend on them, one in six wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 6, (num,), generator=generator)
    noise = torch.randint(0, 3, (num,), generator=generator)
    labels = torch.where(torch.rand(num, generator=generator) < 0.75, inputs % 3, noise)
    return inputs, labels


def mean_loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs), labels)


def train_step(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_parts: int = 1,
    extra_first: bool = False,
    scale: float = 1.0,
    scored: list[int] | None = None,
) -> None:
    """One step, with whatever the optimizer asks for beside the gradient.

    Args:
        num_parts: micro-batches that the gradient is accumulated over.
        extra_first: take scores and statistics before the loss's backward pass instead of after it.
        scored: the samples whose scores are taken; the first ones where not given.
    """
    optimizer.zero_grad()
    extra_pass = getattr(optimizer, "extra_pass", "none")
    cuts = list(torch.arange(len(inputs)).chunk(num_parts))
    parts = [(inputs[cut], labels[cut], scale * len(cut) / len(inputs)) for cut in cuts]

    def losses():
        for x, y, share in parts:
            yield mean_loss(model, x, y) * share

    if extra_pass == "reevaluation":
        optimizer.step(losses)
        return

    def gradient():
        for loss in losses():
            loss.backward()

    passes = [gradient]
    if extra_pass != "none":
        passes.append(lambda: _extra(optimizer, model, inputs, labels, cuts, scored))
    for one in reversed(passes) if extra_first else passes:
        one()
    optimizer.step()


def _extra(optimizer, model, inputs, labels, cuts, scored):
    if optimizer.extra_pass == "scores":
        for k in scored or range(optimizer.num_scores):
            with optimizer.score():
                (-mean_loss(model, inputs[k : k + 1], labels[k : k + 1])).backward()
    if optimizer.extra_pass == "statistics" and not optimizer.empirical and optimizer.wants_statistics:
        with optimizer.statistics():
            for cut in cuts:
                logits = model(inputs[cut])
                nn.functional.cross_entropy(logits, drawn(logits, inputs[cut]), reduction="sum").backward()


GUMBEL = -torch.log(-torch.log(torch.rand(6, 3, generator=torch.Generator().manual_seed(5))))


def drawn(logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Labels drawn from the model; the same for the same input, however a batch is cut, where inputs are tokens."""
    noise = GUMBEL[inputs] if inputs.dtype == torch.long else -torch.log(-torch.log(torch.rand(logits.shape)))
    return (logits.detach() + noise).argmax(-1)


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state after a round trip through a file, weights-only."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def clone(model: nn.Module) -> nn.Module:
    """A copy without hooks."""
    other = Classifier(next(model.parameters()).dtype)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other
