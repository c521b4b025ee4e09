"""The machine's peak, measured in this process: a matrix product, a copy, and the most memory in use.

Left out: caches, several devices, and anything below a whole product or copy.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True)
class MachinePeak:
    """Peak rates of the machine, measured in this process with its threads.

    Attributes:
        flops_per_s: of a square matrix product in the weights' dtype.
        bytes_per_s: read plus written by a copy that fits no cache.
    """

    flops_per_s: float
    bytes_per_s: float


PRODUCT_SIZES = {"cpu": 1024, "cuda": 4096}
"""Widths of the measured matrices: a GPU ends a product of small ones before it is busy."""


def measure_machine_peak(
    device: torch.device, dtype: torch.dtype, size: int | None = None, copy_bytes: int = 2**28
) -> MachinePeak:
    """Measure a product of ``size x size`` matrices and a copy of ``copy_bytes``, each the best of several tries.

    Args:
        size: default: the device's of ``PRODUCT_SIZES``.
    """
    size = size or PRODUCT_SIZES[device.type]
    left, right = torch.ones(2, size, size, device=device, dtype=dtype)
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = _best_seconds(lambda: torch.mm(left, right), device)
    copy_s = _best_seconds(lambda: target.copy_(source), device)
    return MachinePeak(2 * size**3 / product_s, 2 * copy_bytes / copy_s)


def _best_seconds(work: Callable[[], object], device: torch.device, num_tries: int = 7) -> float:
    def once() -> float:
        wait_for(device)
        began = perf_counter()
        work()
        wait_for(device)
        return perf_counter() - began

    return min(once() for _ in range(num_tries))


def wait_for(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the measurement of peak memory, where the system supports it (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return peak memory in bytes since ``reset_peak_memory``: of the device, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
