"""Problems and verifiers: where questions come from, and who decides whether an answer is right.

    load_task(section, seed)  -> Task          problems with a train / held-out split, and their verifiers
    VerifierPool(tasks)       -> verdicts      judged in worker processes, under time and memory limits
    audit(task)               -> AuditReport   can the reward be had without solving anything?
    list_tasks(), show_task() -> text          what reasoning-gym offers

Names load on first use, because a verifier's worker process imports this package too and must start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.tasks.auditing import AuditReport, audit
    from heliostat.tasks.gym import list_tasks
    from heliostat.tasks.loading import load_task, show_task
    from heliostat.tasks.pool import VerifierError, VerifierPool
    from heliostat.tasks.task import Task, WeightedVerifier

__all__ = [
    "AuditReport",
    "Task",
    "VerifierError",
    "VerifierPool",
    "WeightedVerifier",
    "audit",
    "list_tasks",
    "load_task",
    "show_task",
]

_HOME = {
    "AuditReport": "auditing",
    "Task": "task",
    "VerifierError": "pool",
    "VerifierPool": "pool",
    "WeightedVerifier": "task",
    "audit": "auditing",
    "list_tasks": "gym",
    "load_task": "loading",
    "show_task": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'heliostat.tasks' has no attribute '{name}'")
    return getattr(import_module(f"heliostat.tasks.{_HOME[name]}"), name)
