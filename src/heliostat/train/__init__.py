"""Training: the loop, its runtime, and the ways to start it."""

from heliostat.train.evaluate import Evaluation, compare
from heliostat.train.failed import RunFailed
from heliostat.train.progress import Display
from heliostat.train.run import EvalReport, RunResult, run_eval, run_recipe, run_sample, run_sft

__all__ = [
    "Display",
    "EvalReport",
    "Evaluation",
    "RunFailed",
    "RunResult",
    "compare",
    "run_eval",
    "run_recipe",
    "run_sample",
    "run_sft",
]
