"""The common part of the conformance suites: promises that a part of a run keeps, tried one by one.

    objectives.conformance  optim.conformance  rollout.conformance  tracker_conformance
    tasks.verifier_conformance  tasks.environment_audit.conformance

Left out: the promises themselves, and finding the suite for an object (``cli.suites``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

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
