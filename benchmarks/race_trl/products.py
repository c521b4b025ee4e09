"""Products of few rows on weights as a model keeps them, and on a copy that lies input by output: CPU microseconds.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/products.py

Best of five passes over six weights of each shape, so that none is found in the nearest cache.

Left out: everything between the products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

NUM_WEIGHTS, NUM_TRIES = 6, 5
SHAPES = {
    "5M, gate and up": (256, (704, 704)),
    "25M, query, key, value": (512, (512, 512, 512)),
    "25M, down": (1376, (512,)),
    "25M, gate and up": (512, (1376, 1376)),
    "SmolLM2, gate and up": (576, (1536, 1536)),
}


def best_us(work: Callable[[], object]) -> float:
    """CPU microseconds a weight."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    work()
    return 1e6 * min(once() for _ in range(NUM_TRIES)) / NUM_WEIGHTS


def _in_place(x: Tensor, kept: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat([x @ weight.T for weight in weights], -1) for weights in kept]


def _on_copies(x: Tensor, copied: list[Tensor]) -> list[Tensor]:
    return [x @ weight for weight in copied]


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    for name, (width, outputs) in SHAPES.items():
        kept = [[torch.randn(output, width) for output in outputs] for _ in range(NUM_WEIGHTS)]
        copied = [torch.cat(weights).T.contiguous() for weights in kept]
        cells = []
        for num_rows in (4, 16, 64):
            x = torch.randn(num_rows, width)
            apart, fused = best_us(partial(_in_place, x, kept)), best_us(partial(_on_copies, x, copied))
            cells.append(f"{num_rows} rows: {fused:.0f} / {apart:.0f} = {fused / apart:.2f}")
        print(f"{name}, {width} x {sum(outputs)}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
