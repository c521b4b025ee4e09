"""Training: the loop, its runtime, and its entry points."""

from heliostat.train.console.progress import Display
from heliostat.train.evaluation.evaluate import Evaluation, compare
from heliostat.train.evaluation.run_eval import EvalReport, run_eval
from heliostat.train.evaluation.run_sample import SampledConversations, run_conversations, run_sample
from heliostat.train.results import RunFailed, RunResult
from heliostat.train.run import run_recipe, run_sft

__all__ = [
    "Display",
    "EvalReport",
    "Evaluation",
    "RunFailed",
    "RunResult",
    "SampledConversations",
    "compare",
    "run_conversations",
    "run_eval",
    "run_recipe",
    "run_sample",
    "run_sft",
]
