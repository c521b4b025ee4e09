"""Turnaround of this repository's checks: CPU seconds (children included) and wall seconds of ``make`` targets.

    python benchmarks/turnaround.py [--only quick types] [--repeats 3]

Medians. Left out: ``make setup``, and fresh processes of the library itself (``cold_start``).
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from cold_start import until_exit

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("types", "quick", "test")
"""Of the Makefile, in rising order of their time; all want what ``make setup`` installs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=TARGETS)
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores\n\n| target | CPU s | wall s |\n|---|--:|--:|")
    for name in arguments.only:
        runs = [until_exit(["make", name], ROOT) for _ in range(arguments.repeats)]
        cpu, wall = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
        print(f"| make {name} | {cpu:.0f} | {wall:.0f} |", flush=True)


if __name__ == "__main__":
    main()
