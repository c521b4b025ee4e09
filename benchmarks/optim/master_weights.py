"""Time of AdamW's step alone on bfloat16 weights with float32 copies, as a ratio to its step on float32 weights.

    OMP_NUM_THREADS=1 python benchmarks/optim/master_weights.py

Both step in turn, in CPU seconds of this process; the ratio is that of medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from heliostat.optim import accumulate_in_float32
from heliostat.optim.master_weights import with_master_weights

SHAPES = [*((1280, 320), (320, 1280), (320, 320), (320, 320), (320,)) * 9, (8192, 320)]
ROUNDS = 15


def adamw(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


def optimizer_of(dtype: torch.dtype, wide: bool) -> torch.optim.Optimizer:
    """An optimizer over weights with gradients in place; of bfloat16 weights they may be float32."""
    weights = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    if wide:
        accumulate_in_float32(weights)
    for weight in weights:
        (weight * torch.randn(weight.shape).to(dtype)).sum().backward()  # type: ignore[no-untyped-call]
    return with_master_weights([{"params": weights}], adamw)


def seconds(optimizers: Sequence[torch.optim.Optimizer]) -> list[float]:
    """The median of each one's step, in turn."""
    times: list[list[float]] = [[] for _ in optimizers]
    for _ in range(ROUNDS):
        for optimizer, own in zip(optimizers, times, strict=True):
            began = time.process_time()
            optimizer.step()
            own.append(time.process_time() - began)
    return [statistics.median(own[1:]) for own in times]


def main() -> None:
    torch.set_num_threads(1)
    cases = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False)}
    cases["bfloat16, gradients in float32"] = (torch.bfloat16, True)
    found = seconds([optimizer_of(*case) for case in cases.values()])
    for name, own in zip(cases, found, strict=True):
        print(f"{name}: {own * 1e3:.1f} ms, {own / found[0]:.2f} times float32's")


if __name__ == "__main__":
    main()
