"""Tasks: problems with a train / held-out split, and the verifiers that score answers.

    load_task(section, seed)  -> Task          problems with a train / held-out split, and their verifiers
    VerifierPool(tasks)       -> verdicts      judged in worker processes, under time and memory limits
    Judging(judge)            -> rewards       a model's scores as rewards, alone or added to those of verifiers
    audit(task)               -> AuditReport   can the reward be had without solving anything?
    audit_environment(spec, problems) -> EnvironmentReport   and in an environment? is its world the same for a group?
    list_tasks(), show_task() -> text          the tasks of reasoning-gym; show_tasks_of(recipe) those of a recipe

Names load on first use, because a verifier's worker process imports this package too and must start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.tasks.environment_audit.audit import EnvironmentReport, audit_environment
    from heliostat.tasks.judging import JudgeFailed, Judging
    from heliostat.tasks.loading import load_task, show_task, show_tasks_of
    from heliostat.tasks.reward_audit.audit import AuditReport, audit
    from heliostat.tasks.sources.reasoning_gym import list_tasks
    from heliostat.tasks.task import Task, WeightedVerifier
    from heliostat.tasks.verifier_pool.pool import VerifierError, VerifierPool

__all__ = [
    "AuditReport",
    "EnvironmentReport",
    "JudgeFailed",
    "Judging",
    "Task",
    "VerifierError",
    "VerifierPool",
    "WeightedVerifier",
    "audit",
    "audit_environment",
    "list_tasks",
    "load_task",
    "show_task",
    "show_tasks_of",
]

_HOME = {
    "AuditReport": "reward_audit.audit",
    "EnvironmentReport": "environment_audit.audit",
    "JudgeFailed": "judging",
    "Judging": "judging",
    "Task": "task",
    "VerifierError": "verifier_pool.pool",
    "VerifierPool": "verifier_pool.pool",
    "WeightedVerifier": "task",
    "audit": "reward_audit.audit",
    "audit_environment": "environment_audit.audit",
    "list_tasks": "sources.reasoning_gym",
    "load_task": "loading",
    "show_task": "loading",
    "show_tasks_of": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'heliostat.tasks' has no attribute '{name}'")
    return getattr(import_module(f"heliostat.tasks.{_HOME[name]}"), name)
