"""What the step-level signals cost: their CPU seconds over those of the step they watch.

    python benchmarks/guard/cost.py [RECIPE] [--steps 12]

Both are measured in the same run, step by step; the median share is reported. The warm start is cut short: only the
size of a step matters. Left out: the panel, which is not part of a step.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from heliostat.config import load_recipe
from heliostat.monitors.guard import Guard
from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.signal import Monitor
from heliostat.monitors.weights import WeightProbe
from heliostat.train import run_recipe
from heliostat.train.trainer import Trainer

WATCHED = (
    *((Monitor, name) for name in ("measure", "finish")),
    *((Mismatch, name) for name in ("measure", "finish")),
    *((WeightProbe, name) for name in ("remember", "measure", "finish")),
    (Guard, "read"),
)


class Clock:
    """CPU seconds spent in some methods, since the last look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, cls: type, name: str) -> None:
        inner = getattr(cls, name)

        def timed(*args, **kwargs):
            began = time.process_time()
            result = inner(*args, **kwargs)
            self.seconds += time.process_time() - began
            return result

        setattr(cls, name, timed)

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    signals, shares = Clock(), []
    for cls, name in WATCHED:
        signals.watch(cls, name)
    step = Trainer.step

    def timed_step(self, number):
        spent = signals.take()
        began = time.process_time()
        values = step(self, number)
        shares.append((spent, time.process_time() - began))
        return values

    quick = {"train.num_steps": args.steps, "warm_start.num_steps": 5, "eval.every": 0, "task.num_heldout": 4,
             "eval.final_samples": 1, "run.num_threads": 1, "guard.panel_every": 0}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, patch.object(Trainer, "step", timed_step):
        run_recipe(load_recipe(args.recipe, quick), Path(folder) / "run", "cost")
    # The cost counted at the start of a step is the previous step's, its judgement included.
    measured = [spent / whole for (_, whole), (spent, _) in pairwise(shares)][1:]
    seconds = statistics.median(whole for _, whole in shares)
    print(
        f"{args.recipe}: {len(measured)} steps of {seconds:.2f} CPU seconds; signals and judgement "
        f"{statistics.median(measured):.2%} of a step ({min(measured):.2%} to {max(measured):.2%})"
    )


if __name__ == "__main__":
    main()
