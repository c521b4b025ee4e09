"""The common part of the conformance suites: promises that a part of a run keeps, tried one by one.

    objectives.conformance  optim.conformance  rollout.conformance  tracker_conformance
    tasks.verifier_conformance  tasks.environment_audit.conformance

Left out: the promises themselves, and finding the suite for an object (``cli.suites``).
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch

Part = TypeVar("Part")


class Nonconforming(ValueError):
    """A part breaks a promise; the message says which, and what to change."""


def run_checks(checks: Iterable[Callable[[Part], Any]], part: Part) -> dict[str, str]:
    """Run every check on a part; return a sentence by check, empty where it passed."""
    found = {}
    for check in checks:
        name = getattr(check, "__name__", repr(check))
        try:
            check(part)
        except Nonconforming as error:
            found[name] = str(error)
        except (Exception, SystemExit) as error:  # the part's own code, which must not end the program
            found[name] = f"it raises {type(error).__name__}: {error}"
        else:
            found[name] = ""
    return found


def run_within(limit_s: float, check: Callable[[Part], Any], part: Part) -> dict[str, str] | None:
    """Run a check as ``run_checks`` does, in a thread; ``None`` if it has not ended within ``limit_s`` seconds."""
    found: dict[str, str] = {}
    thread = threading.Thread(target=lambda: found.update(run_checks([check], part)), daemon=True)
    thread.start()
    thread.join(limit_s)
    return None if thread.is_alive() else found


def process_state() -> dict[str, object]:
    """Return the parts of the process's state that a run's results depend on, by name."""
    return {
        "random state": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        "working directory": os.getcwd(),  # noqa: PTH109 compared as text
        "signal handlers": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "number of threads": torch.get_num_threads(),
    }
