"""Products of few rows, three ways: on a model's weights, on a copy input by output, and on one in oneDNN's own order.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/products.py

CPU microseconds a weight, best of five passes over six weights of each shape, so that none is found in the nearest
cache. The last column is a product's floor: operations at the ceiling of a large product, or bytes at that of a copy.

Left out: everything between the products, and the reordering itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from heliostat.rollout.in_process.fused_linear import FusedLinear

NUM_WEIGHTS, NUM_TRIES = 6, 5
SHAPES = {
    "5M, gate and up": (256, (704, 704)),
    "25M, query, key, value": (512, (512, 512, 512)),
    "25M, down": (1376, (512,)),
    "25M, gate and up": (512, (1376, 1376)),
    "SmolLM2, gate and up": (576, (1536, 1536)),
    "SmolLM2, head": (576, (49152,)),
}
CEILING_SIZE, COPIED_BYTES = 1024, 2**28


def best_us(work: Callable[[], object], num: int = NUM_WEIGHTS) -> float:
    """CPU microseconds of one of ``num`` equal parts of the work."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    work()
    return 1e6 * min(once() for _ in range(NUM_TRIES)) / num


def _apart(x: Tensor, kept: list[list[nn.Linear]]) -> list[Tensor]:
    return [torch.cat([linear(x) for linear in linears], -1) for linears in kept]


def _on_copies(x: Tensor, copied: list[Tensor]) -> list[Tensor]:
    return [x @ weight for weight in copied]


def _reordered(x: Tensor, products: list[FusedLinear]) -> list[Tensor]:
    return [product(x) for product in products]


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    bytes_per_us = 2 * COPIED_BYTES / best_us(partial(torch.empty_like(source).copy_, source), 1)
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(CEILING_SIZE, CEILING_SIZE, dtype=dtype)
        flops_per_us = 2 * CEILING_SIZE**3 / best_us(partial(torch.mm, square, square), 1)
        print(f"\n{dtype}: {flops_per_us / 1e3:.0f} GFLOP/s, {bytes_per_us / 1e3:.0f} GB/s\n")
        print(
            "| weights | rows | as they are | joined, input by output | reordered | floor |\n|---|--:|--:|--:|--:|--:|"
        )
        for name, (width, outputs) in SHAPES.items():
            kept = [
                [nn.Linear(width, output, bias=False, dtype=dtype) for output in outputs] for _ in range(NUM_WEIGHTS)
            ]
            copied = [torch.cat([linear.weight for linear in linears]).T.contiguous() for linears in kept]
            products = [FusedLinear(*linears) for linears in kept]
            for product in products:
                product.reorder()
            size = width * sum(outputs)
            for num_rows in (8, 24, 64):
                x = torch.randn(num_rows, width).to(dtype)
                ways = (partial(_apart, x, kept), partial(_on_copies, x, copied), partial(_reordered, x, products))
                cells = [f"{best_us(way):.0f}" for way in ways]
                floor = max(2 * num_rows * size / flops_per_us, size * dtype.itemsize / bytes_per_us)
                print(f"| {name} | {num_rows} | {' | '.join(cells)} | {floor:.0f} |", flush=True)


if __name__ == "__main__":
    main()
