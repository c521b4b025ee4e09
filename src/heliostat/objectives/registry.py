"""Objectives by name, and the one way to build one from a recipe.

    pmd-mean                    shipped
    my_module:MyObjective       a class derived from ``Objective``, beside the recipe or installed
    my-objective                a name in the entry-point group ``heliostat.objectives`` of an installed package

Left out: the promises that an objective keeps (``conformance``), and importing it (``heliostat.named_imports``).
"""

from __future__ import annotations

from heliostat.arguments import PathArg, as_text
from heliostat.config import ConfigError, ObjectiveSection, build_checked
from heliostat.named_imports import find
from heliostat.objectives.clipped import Dapo, DrGrpo, Grpo, Gspo
from heliostat.objectives.conformance import failures
from heliostat.objectives.contract import Objective
from heliostat.objectives.likelihood import MaxRl
from heliostat.objectives.listwise import Lpo, Tpo
from heliostat.objectives.mirror import KimiK2, Opmd, PmdBaseline, PmdMean, PmdPart
from heliostat.objectives.penalized import KimiK25, KlChi2, LogRatioDecay
from heliostat.objectives.policy_gradient import Cispo, Dppo, Reinforce, Rloo
from heliostat.objectives.probability_penalty import Drpo

_SHIPPED: tuple[type[Objective], ...] = (
    *(PmdMean, PmdPart, PmdBaseline, KimiK2, Opmd),
    *(LogRatioDecay, KlChi2, KimiK25),
    *(Tpo, Lpo),
    *(Reinforce, Rloo, Cispo, Dppo, Drpo),
    *(Grpo, DrGrpo, Dapo, Gspo, MaxRl),
)

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _SHIPPED}
"""Every shipped objective by name."""


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
    if sentence := next(filter(None, broken.values()), ""):
        raise ConfigError(f"objective '{section.name}': {sentence} (heliostat check {section.name} tries all promises)")
    return objective


def named_objective(section: ObjectiveSection) -> Objective:
    """Build the objective that a recipe names, and check its settings.

    Raises:
        ConfigError: the name or a key is unknown, a value has the wrong type, or the values contradict each other.
    """
    cls = objective_class(section.name, section.import_from)
    return build_checked(cls, section.settings, "objective")


def objective_class(name: str, import_from: PathArg = "") -> type[Objective]:
    """Find the class of a built-in name, of ``module:Name``, or of an entry point in ``heliostat.objectives``.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, or it is no complete objective.
    """
    cls = find("objective", name, OBJECTIVES, as_text(import_from))
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise ConfigError(
            f"objective.name = '{name}' is no subclass of heliostat.objectives.Objective; write class "
            "MyObjective(Objective) with advantages, terms and can_drop_zero_advantage_groups"
        )
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"objective.name = '{name}' does not define {', '.join(missing)}")
    return cls
