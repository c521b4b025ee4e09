"""An engine of a user's module or of an installed package, named by ``rollout.engine``.

    class MyEngine:
        def __init__(self, loaded, limits, **settings): ...      settings: rollout.engine_settings
        way = "my engine"                                        the rest is ``rollout.engine.Engine``

What it returns is compared with every request, since groups that are missing or exchanged would train in silence.

Left out: whether it samples the model's own distribution (``rollout.conformance``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.config import ConfigError, RolloutSection
from heliostat.conformance import Nonconforming
from heliostat.models import LoadedModel
from heliostat.rollout.completions import DecodeLimits
from heliostat.rollout.engine import Engine, RolloutCounts
from heliostat.rollout.request import SampleRequest
from heliostat.types import Group

METHODS = ("sample", "take_counts", "clone_for", "stop")
"""Methods that every engine has."""


def own_engine(section: RolloutSection, make: Callable[..., Any]) -> Callable[..., Engine]:
    """Return the function that builds a user's engine, once its class and settings have been checked.

    Args:
        make: the class, or a function that returns the engine; called with the model, the limits and the settings.

    Raises:
        ConfigError: it takes no such arguments, or lacks a method.
    """
    name = section.engine
    if isinstance(make, type):
        _check_methods(name, make)
    try:
        inspect.signature(make).bind(None, None, **section.engine_settings)
    except TypeError as error:
        raise ConfigError(
            f"rollout.engine = '{name}' is built as {name.rpartition(':')[2]}(loaded, limits, **settings), with the "
            f"settings of rollout.engine_settings, and does not take that: {error}"
        ) from error
    return functools.partial(_build, name, make, section.engine_settings)


def _build(
    name: str, make: Callable[..., Any], settings: dict[str, Any], loaded: LoadedModel, limits: DecodeLimits, *_: object
) -> Engine:
    try:
        engine: Engine = make(loaded, limits, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"rollout.engine = '{name}' cannot be built: {type(error).__name__}: {error}") from error
    _check_methods(name, engine)
    if not isinstance(getattr(engine, "way", None), str):
        raise ConfigError(f"rollout.engine = '{name}' needs the attribute way, a phrase for the run's summary")
    return OwnEngine(name, engine)


@dataclass(frozen=True, slots=True)
class OwnEngine:
    """A user's engine, whose groups are compared with the request before anything is trained on them."""

    name: str
    inner: Engine

    @property
    def way(self) -> str:
        return self.inner.way

    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample as the user's engine does.

        Raises:
            Nonconforming: the groups are not those of the request.
        """
        groups = self.inner.sample(request)
        try:
            refuse_other_groups(request, groups)
        except Nonconforming as error:
            raise Nonconforming(f"rollout.engine = '{self.name}': {error} (heliostat check {self.name})") from error
        return groups

    def take_counts(self) -> RolloutCounts:
        return self.inner.take_counts()

    def clone_for(self, loaded: LoadedModel) -> Engine:
        return OwnEngine(self.name, self.inner.clone_for(loaded))

    def stop(self) -> None:
        self.inner.stop()


def refuse_other_groups(request: SampleRequest, groups: Sequence[Group]) -> None:
    """Refuse groups that are not those of the request.

    Raises:
        Nonconforming: a group or a completion is missing, one has another prompt, or another step.
    """
    if not isinstance(groups, list) or not all(isinstance(group, Group) for group in groups):
        raise Nonconforming(f"sample must return a list of Group, got {groups!r:.60}")
    sizes = {len(group.completions) for group in groups}
    if [group.prompt for group in groups] != list(request.prompts) or sizes - {request.group_size}:
        raise Nonconforming("sample must return one group for each prompt, in order, with group_size completions each")
    if any(group.policy_step != request.policy_step for group in groups):
        raise Nonconforming("a group's policy_step must be that of the request, from which its age is counted")


def _check_methods(name: str, engine: object) -> None:
    if missing := [method for method in METHODS if not callable(getattr(engine, method, None))]:
        raise ConfigError(
            f"rollout.engine = '{name}' is no engine: it lacks {', '.join(missing)} (heliostat.rollout.Engine)"
        )
