"""Objectives by name, and the one way to build one from a recipe.

pmd-mean                    shipped
my_module:MyObjective       a class derived from ``Objective``, beside the recipe or installed
my-objective                a name in the entry-point group ``heliostat.objectives`` of an installed package
"""

from __future__ import annotations

from heliostat.arguments import PathArg, as_text
from heliostat.config import ConfigError, ObjectiveSection, build_checked, nearest
from heliostat.named_imports import registered, resolve
from heliostat.objectives.clipped import Dapo, DrGrpo, Grpo, Gspo
from heliostat.objectives.conformance import failures
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
"""Every shipped objective by name."""

GROUP = "heliostat.objectives"
"""The entry-point group in which packages register objectives of their own; shipped names come first."""


def objective_names() -> list[str]:
    """List the names that a recipe may use; related ones follow one another."""
    return list(OBJECTIVES)


def build_objective(section: ObjectiveSection) -> Objective:
    """Build the objective that a recipe names, and check its settings; one that is not shipped, its promises too.

    Raises:
        ConfigError: the name or a key is unknown, a value has the wrong type, the values contradict each other, or an
            objective of your own breaks a promise (``objectives.conformance``).
    """
    objective = named_objective(section)
    broken = {} if section.name in OBJECTIVES else failures(objective)
    for sentence in filter(None, broken.values()):
        raise ConfigError(f"objective '{section.name}': {sentence} (heliostat check {section.name} tries all promises)")
    return objective


def named_objective(section: ObjectiveSection) -> Objective:
    """Build the objective that a recipe names, and check its settings.

    Raises:
        ConfigError: the name or a key is unknown, a value has the wrong type, or the values contradict each other.
    """
    kind = OBJECTIVES.get(section.name) or _find(section.name, section.import_from)
    return build_checked(kind, section.settings, "objective")


def find_objective(name: str, folder: PathArg = "") -> type[Objective]:
    """Import the objective class ``module:Name``; ``folder`` and the working directory are searched too.

    Raises:
        ConfigError: it cannot be imported, or is no objective.
    """
    try:
        found = resolve(name, as_text(folder))
    except ValueError as error:
        raise ConfigError(f"objective.name: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ConfigError(
            f"objective.name: '{name}' is no class derived from heliostat.objectives.Objective; write class "
            f"{name.rpartition(':')[2]}(Objective) with advantages, terms and can_drop_zero_advantage_groups"
        )
    if found.__abstractmethods__:
        raise ConfigError(f"objective.name: '{name}' has no {' and no '.join(sorted(found.__abstractmethods__))}")
    return found


def _find(name: str, folder: str) -> type[Objective]:
    if ":" in name:
        return find_objective(name, folder)
    elsewhere = registered(GROUP)
    if name in elsewhere:
        return find_objective(elsewhere[name])
    known = [*objective_names(), *elsewhere]
    raise ConfigError(
        f"unknown objective '{name}'{nearest(name, known)}; known: {', '.join(known)}, or 'my_module:MyObjective'"
    )
