"""Build an environment from its description, in the process that runs it."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable

from heliostat.tasks.environments.contract import Environment, EnvironmentSpec
from heliostat.tasks.verifiers.builtin import resolve


def build(spec: EnvironmentSpec) -> Callable[[], Environment]:
    """Return the factory of an environment's instances.

    Raises:
        ValueError: it cannot be imported, in one sentence.
    """
    factory = pickle.loads(spec.content) if spec.content else resolve(spec.name, spec.import_from)
    return functools.partial(factory, **spec.settings)
