"""Heliostat: post-train language models by policy mirror descent, and keep them on target.

The names below load on first use, so that ``import heliostat`` costs nothing:

    post_train, sft, evaluate, sample    what the command line does
    write_report                         run folders to one page
    diagnose                             what went wrong with a run
    load_recipe, Recipe                  settings
    RunFailed                            what a run that failed raises
    Environment, Step                    the base class of your own environment, and what its step returns
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.api import evaluate, post_train, sample, sft
    from heliostat.config import ConfigError, Recipe, load_recipe
    from heliostat.report import write_report
    from heliostat.report.diagnosis import diagnose
    from heliostat.tasks.environments.contract import Environment, Step
    from heliostat.train.results import RunFailed

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Environment",
    "Recipe",
    "RunFailed",
    "Step",
    "__version__",
    "diagnose",
    "evaluate",
    "load_recipe",
    "post_train",
    "sample",
    "sft",
    "write_report",
]

_HOME = {
    "ConfigError": "config",
    "Environment": "tasks.environments.contract",
    "Recipe": "config",
    "RunFailed": "train.results",
    "Step": "tasks.environments.contract",
    "diagnose": "report.diagnosis",
    "evaluate": "api",
    "load_recipe": "config",
    "post_train": "api",
    "sample": "api",
    "sft": "api",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'heliostat' has no attribute '{name}'")
    if _HOME[name] == "api":
        from heliostat.nested_runs import in_verifier_process, refuse_nested

        if in_verifier_process():  # a verifier process: refuse a run without loading torch
            return lambda *args, **options: refuse_nested("a run")
    return getattr(import_module(f"heliostat.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
