"""Objectives by name, and the one way to build one from a recipe."""

from __future__ import annotations

from heliostat.config import ConfigError, ObjectiveSection, build_checked
from heliostat.named_imports import find
from heliostat.objectives.clipped import Dapo, DrGrpo, Grpo, Gspo
from heliostat.objectives.contract import Objective
from heliostat.objectives.mirror import KimiK2, Opmd, PmdBaseline, PmdMean, PmdPart
from heliostat.objectives.penalized import KimiK25, KlChi2, LogRatioDecay
from heliostat.objectives.policy_gradient import Cispo, Dppo, Reinforce, Rloo

_SHIPPED: tuple[type[Objective], ...] = (
    *(PmdMean, PmdPart, PmdBaseline, KimiK2, Opmd),
    *(LogRatioDecay, KlChi2, KimiK25),
    *(Reinforce, Rloo, Cispo, Dppo),
    *(Grpo, DrGrpo, Dapo, Gspo),
)

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _SHIPPED}
"""Every objective by name; an entry added here can be named in a recipe and is held to the conformance test."""


def objective_names() -> list[str]:
    """List the names that a recipe may use; related ones follow one another."""
    return list(OBJECTIVES)


def build_objective(section: ObjectiveSection) -> Objective:
    """Build the objective that a recipe names, and check its settings.

    Raises:
        ConfigError: the name or a key is unknown, a value has the wrong type, or the values contradict each other.
    """
    cls = objective_class(section.name, section.import_from)
    return build_checked(cls, section.settings, "objective")


def objective_class(name: str, import_from: str = "") -> type[Objective]:
    """Find the class of a built-in name, of ``module:Name``, or of an entry point in ``heliostat.objectives``.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, or it is no complete objective.
    """
    cls = find("objective", name, OBJECTIVES, import_from)
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise ConfigError(f"objective.name = '{name}' is no subclass of heliostat.objectives.Objective")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"objective.name = '{name}' does not define {', '.join(missing)}")
    return cls
