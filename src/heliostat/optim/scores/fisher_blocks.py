"""Blocks of a Fisher matrix that is built from m scores, and the natural gradient in each by Woodbury's identity.

    F = D + (1/m) sum_k u_k u_k',   d = F^-1 g = D^-1 (g - U w),   (m I + U' D^-1 U) w = U' D^-1 g

Only the m x m system is formed, in float64 on the CPU, from inner products that are taken tensor by tensor.

Left out: applying ``d`` (``rank1``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.optim.distributed.sharded_tensors import dot, local_shard, sum_over_shards, upcast
from heliostat.optim.scores.score_buffer import ScoreRows

Grouped = Mapping[Tensor, dict[str, Any]]
"""Parameters that have a gradient, each with its group, in a fixed order."""


@dataclass(slots=True)
class BlockSolution:
    """The natural gradient of one block, ``d = D^-1 (g - sum_k weights_k u_k)``.

    Attributes:
        weights: ``w``, one for each score.
        decrement: ``g'd``; only its second term where the caller has no use for it.
    """

    parameters: list[Tensor]
    weights: Float[np.ndarray, " score"]
    decrement: float


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def flat_rows(rows: Float[Tensor, "score ..."]) -> Float[Tensor, "score entry"]:
    """Flatten each score to one row, also where the weight has no axis or no entry."""
    return rows.reshape(len(rows), rows[0].numel())


def inner_products(
    num_scores: int, rows: ScoreRows, parameters: Sequence[Tensor]
) -> Float[np.ndarray, "tensor score 1+score"]:
    """Compute ``[U'g, U'U]`` of every tensor, in float64 on the CPU; zero where no score reaches a tensor."""
    products = np.zeros((len(parameters), num_scores, 1 + num_scores))
    reached = [index for index, parameter in enumerate(parameters) if parameter in rows]
    parts: list[Tensor] = []
    for parameter in (parameters[index] for index in reached):
        scores, gradient = upcast(rows[parameter]), upcast(local_shard(gradient_of(parameter), parameter)).reshape(-1)
        if num_scores == 1:  # two calls less than the matrix products, which shows in tensors as small as a bias
            alone = scores.reshape(-1)
            parts += [torch.dot(alone, gradient), torch.dot(alone, alone)]
        else:
            flat = flat_rows(scores)
            parts.append(torch.cat(((flat @ gradient)[:, None], flat @ flat.T), 1))
    if parts:
        summed = sum_over_shards(parts, [parameters[index] for index in reached])
        products[reached] = summed.reshape(-1, num_scores, 1 + num_scores)
    return products


def solve_blocks(
    blocks: Sequence[list[Tensor]],
    products: Float[np.ndarray, "tensor score 1+score"],
    groups: Grouped,
    with_decrement: bool,
) -> list[BlockSolution]:
    """Solve each block's m x m system.

    Args:
        blocks: parameters that share one Fisher matrix.
        products: of ``inner_products``, in the order of ``groups``.
        with_decrement: compute ``g'd``, which takes one more pass over the gradients.
    """
    place = {parameter: index for index, parameter in enumerate(groups)}
    damping = np.array([group["damping"] for group in groups.values()])[:, None, None]
    weighted, num_scores = products / damping, products.shape[1]
    solutions = []
    for block in blocks:
        total = weighted[[place[parameter] for parameter in block]].sum(0)
        cross, gram = total[:, 0], total[:, 1:]  # U' D^-1 g and U' D^-1 U
        system = gram + num_scores * np.eye(num_scores)
        weights = cross / system[0] if num_scores == 1 else np.linalg.solve(system, cross)
        own = 0.0  # g' D^-1 g
        if with_decrement:
            own = sum(dot([gradient_of(p)], [gradient_of(p)]) / groups[p]["damping"] for p in block)
        solutions.append(BlockSolution(block, weights, own - float(cross @ weights)))
    return solutions


def _whole(groups: Grouped) -> list[list[Tensor]]:
    return [list(groups)]


def _per_tensor(groups: Grouped) -> list[list[Tensor]]:
    return [[parameter] for parameter in groups]


def _per_layer(groups: Grouped) -> list[list[Tensor]]:
    """Put parameters whose names differ only after the last dot in one block."""
    names: dict[Tensor, str] = {}
    for group in {id(group): group for group in groups.values()}.values():
        names |= zip(group["params"], group["param_names"], strict=True)
    layers: dict[str, list[Tensor]] = {}
    for parameter in groups:
        layers.setdefault(names[parameter].rpartition(".")[0], []).append(parameter)
    return list(layers.values())


BLOCKS: dict[str, Callable[[Grouped], list[list[Tensor]]]] = {
    "global": _whole,
    "param": _per_tensor,
    "layer": _per_layer,
}
"""By name of a block: how parameters that have a gradient are divided."""
