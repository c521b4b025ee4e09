"""The guard: signals that measure a run, detectors that raise alarms, controllers that act.

    signals (Batch -> metrics)  ->  detectors (metrics -> alarms)  ->  controllers and actions

Left out: the loop that the guard monitors (``train``), pages (``report``). Nothing here imports torch on its own:
detectors, controllers and text statistics work on a laptop that has only the log of a run.
"""

from heliostat.monitors.absolute_monitor import AbsoluteMonitor, recipe_numbers, standing, standing_by_rule
from heliostat.monitors.absolute_rules import ABSOLUTE_RULES
from heliostat.monitors.controllers import CONTROLLERS, BangBang, Controller, DualAscent, ProportionalIntegral
from heliostat.monitors.detectors import Cusum, Detector, Ewma, Limit, Multiple, Offset, Reading, RobustZ
from heliostat.monitors.evaluations import evaluation_signals
from heliostat.monitors.guard import Finding, Guard
from heliostat.monitors.reference import Reference
from heliostat.monitors.rules import Rule, default_rules

__all__ = [
    "ABSOLUTE_RULES",
    "CONTROLLERS",
    "AbsoluteMonitor",
    "BangBang",
    "Controller",
    "Cusum",
    "Detector",
    "DualAscent",
    "Ewma",
    "Finding",
    "Guard",
    "Limit",
    "Multiple",
    "Offset",
    "ProportionalIntegral",
    "Reading",
    "Reference",
    "RobustZ",
    "Rule",
    "default_rules",
    "evaluation_signals",
    "recipe_numbers",
    "standing",
    "standing_by_rule",
]
