"""The typed recipe: every setting of a run, in one place, checked before anything expensive happens.

A recipe is a tree of small frozen sections (``sections``). It is laid together from a shipped or own TOML file, the
files that one extends, and overrides (``layers``, ``recipes``). Unknown keys, wrong types and contradictory settings
raise ``ConfigError`` with one sentence that names the key and the nearest valid one (``errors``, ``keys``).

Left out: the commands of the command line (``cli``), and the effect of a setting (the package that uses it).
"""

from heliostat.config.errors import ConfigError, describe, named_by, nearest
from heliostat.config.keys import Key, build_checked, describe_keys, describe_sections, suggest
from heliostat.config.layers import split_overrides
from heliostat.config.places import is_same_place
from heliostat.config.recipes import (
    build_recipe,
    dump_recipe,
    is_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_text,
)
from heliostat.config.sections.base import NamedSection, Section
from heliostat.config.sections.judge import JudgeSection
from heliostat.config.sections.recipe import Recipe
from heliostat.config.sections.rollout import RolloutSection
from heliostat.config.sections.run import DistributedSection, LoraSection, ModelSection, RunSection, TrackingSection
from heliostat.config.sections.task import AuditSection, EnvironmentSection, PrefixSection, TaskSection, TracesSection
from heliostat.config.sections.teacher import TeacherSection
from heliostat.config.sections.training import (
    EvalSection,
    FeedbackSection,
    GuardSection,
    ObjectiveSection,
    OptimizerSection,
    TrainSection,
    WarmStartSection,
)

__all__ = [
    "AuditSection",
    "ConfigError",
    "DistributedSection",
    "EnvironmentSection",
    "EvalSection",
    "FeedbackSection",
    "GuardSection",
    "JudgeSection",
    "Key",
    "LoraSection",
    "ModelSection",
    "NamedSection",
    "ObjectiveSection",
    "OptimizerSection",
    "PrefixSection",
    "Recipe",
    "RolloutSection",
    "RunSection",
    "Section",
    "TaskSection",
    "TeacherSection",
    "TracesSection",
    "TrackingSection",
    "TrainSection",
    "WarmStartSection",
    "build_checked",
    "build_recipe",
    "describe",
    "describe_keys",
    "describe_sections",
    "dump_recipe",
    "is_recipe",
    "is_same_place",
    "load_recipe",
    "named_by",
    "nearest",
    "parse_recipe",
    "recipe_names",
    "recipe_text",
    "split_overrides",
    "suggest",
]
