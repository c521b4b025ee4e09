"""Objectives by name, and the one way to build one from a recipe."""

from __future__ import annotations

from heliostat.config import ConfigError, ObjectiveSection, build_checked, nearest
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
    if section.name not in OBJECTIVES:
        raise ConfigError(
            f"unknown objective '{section.name}'{nearest(section.name, OBJECTIVES)}; known: "
            f"{', '.join(objective_names())}"
        )
    return build_checked(OBJECTIVES[section.name], section.settings, "objective")
