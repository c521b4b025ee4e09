"""A case of the kit: a name, a budget in seconds, and a function that returns its findings as plain data.

A finding under ``faults`` is a sentence about a wrong number, and makes the case wrong.

Left out: running cases (``kit``), and the cases themselves (``parity``, ``training``, ``decoding``, ``attention``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from heliostat.train.accounting.machine_peak import wait_for

Findings = dict[str, Any]

NEEDS_CUDA = "skipped: needs CUDA"


class Skipped(Exception):
    """A case cannot run here; the message says why, in a few words."""


@dataclass(frozen=True)
class Setup:
    """The device and the sizes of one run of the kit.

    Attributes:
        model: a key of ``shapes.SIZES``.
        folder: an empty folder of the case.
        trl_python: an interpreter that has TRL; empty: none.
    """

    device: torch.device
    model: str
    folder: Path
    trl_python: str = ""

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        seconds: the case is killed after so many wall seconds.
        needs_cuda: skip it on a CPU.
    """

    name: str
    seconds: int
    run: Callable[[Setup], Findings]
    needs_cuda: bool = False


def median_seconds(work: Callable[[], object], device: torch.device, num_tries: int) -> float:
    """Return the median wall seconds of ``work`` with its kernels, after one run that warms up."""
    work()
    seconds = []
    for _ in range(num_tries):
        wait_for(device)
        began = perf_counter()
        work()
        wait_for(device)
        seconds.append(perf_counter() - began)
    return statistics.median(seconds)


def digits(value: float, num: int = 3) -> float:
    """Round to significant digits, so that the JSON can be read."""
    return float(f"{value:.{num}g}")
