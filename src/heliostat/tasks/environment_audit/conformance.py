"""The audit of an environment as promises: ``heliostat check my_module:MyEnvironment``.

Left out: the audit itself (``audit``), and the problems of a recipe's own task (``heliostat tasks audit``).
"""

from __future__ import annotations

from heliostat.config import ConfigError, EnvironmentSection, TaskSection
from heliostat.tasks.environment_audit.audit import audit_environment
from heliostat.tasks.environment_audit.findings import EnvironmentFindingKind as Kind
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.pool import EnvironmentNotLoaded
from heliostat.tasks.sources.environment import EnvironmentTaskSettings, load_environment

LOADS = "a process of its own can load it"

PROMISES: dict[Kind, str] = {
    Kind.FAILED: "every action is answered without an exception and in time",
    Kind.NOT_REPEATABLE: "the same problem, seed and actions give the same episode",
    Kind.SIBLINGS: "episodes in parallel do not disturb each other",
    Kind.ONE_WORLD: "the world depends on the problem or the seed",
    Kind.ORACLE_FAILS: "the actions of its oracle succeed, where it has one",
    Kind.FREE_SUCCESS: "policies that solve nothing do not succeed",
    Kind.FREE_RETURN: "policies that solve nothing earn no return",
}
"""Every finding that speaks against training in an environment, as the promise that it breaks."""


def failures(section: EnvironmentSection, num_problems: int = 20) -> dict[str, str]:
    """Audit an environment on problems of its own; return a sentence by promise, empty where it is kept.

    Args:
        num_problems: problems to play; fewer if the environment has fewer.

    Raises:
        ConfigError: there is no such environment, or a setting is wrong.
    """
    spec = environment_of(section)
    if spec is None:
        raise ConfigError("environment.name is empty; name the environment to check")
    task = TaskSection(name="environment", num_train=num_problems, num_heldout=1)
    try:
        problems = load_environment(task, EnvironmentTaskSettings(), 0, section).train
    except ValueError:  # an environment without problem(seed) has one empty prompt, and others may have few
        task = task.model_copy(update={"num_train": 1})
        problems = load_environment(task, EnvironmentTaskSettings(), 0, section).train
    try:
        report = audit_environment(spec, problems, max_turns=section.max_turns)
    except EnvironmentNotLoaded as error:
        return {LOADS: str(error)} | dict.fromkeys(PROMISES.values(), "not tried, since it cannot be loaded")
    said = {finding.kind: finding.sentence for finding in report.findings}
    return {LOADS: ""} | {text: said.get(kind, "") for kind, text in PROMISES.items()}
