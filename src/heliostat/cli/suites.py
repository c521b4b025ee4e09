"""The conformance suite of each kind of part, and how a part of the kind is recognised.

Imports a suite only when it is run.

Left out: printing (``check``), and the promises (``heliostat.optim.conformance`` and its siblings).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.named_imports import KINDS

Found = dict[str, tuple[str, str]]
"""By the name of a promise: its text, and a sentence about the failure, empty where it is kept."""


@dataclass(frozen=True, slots=True)
class Suite:
    """The promises of one kind of part.

    Attributes:
        section: the recipe's section whose settings the part takes.
        shipped: returns the shipped names.
        recognises: whether an imported object looks like a part of this kind.
        run: tries the promises on a named part, with settings as command-line words.
    """

    section: str
    shipped: Callable[[], Collection[str]]
    recognises: Callable[[Any], bool]
    run: Callable[[str, Sequence[str]], Found]


def find_kind(name: str) -> str:
    """Return the kind of a named part.

    Raises:
        ConfigError: it could be none, or several.
    """
    from heliostat.config import ConfigError
    from heliostat.named_imports import declared, resolve

    if ":" in name:
        try:
            part = resolve(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        kinds = [kind for kind, suite in SUITES.items() if suite.recognises(part)]
    else:
        kinds = [kind for kind, suite in SUITES.items() if name in suite.shipped() or declared(kind, name)]
    if len(kinds) == 1:
        return kinds[0]
    if not kinds and ":" not in name:
        raise ConfigError(
            f"nothing shipped or installed is named '{name}'; name your own part as my_module:Name, in its folder"
        )
    looks = f"could be {' or '.join(kinds)}" if kinds else "looks like no kind of part"
    raise ConfigError(f"'{name}' {looks}; say which it is: --kind {'|'.join(kinds or SUITES)}")


def tried(checks: Sequence[Callable[..., Any]], found: dict[str, str]) -> Found:
    """Join the promises' texts, which are their docstrings, with the failures."""
    texts = {each.__name__: (each.__doc__ or "").strip().removeprefix("Check that ").rstrip(".") for each in checks}
    return {name: (texts[name], sentence) for name, sentence in found.items()}


def _objectives() -> Collection[str]:
    from heliostat.objectives import OBJECTIVES

    return OBJECTIVES


def _is_objective(part: Any) -> bool:
    from heliostat.objectives import Objective

    return isinstance(part, type) and issubclass(part, Objective)


def _try_objective(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import build_recipe
    from heliostat.objectives import named_objective
    from heliostat.objectives.conformance import CHECKS, failures

    recipe = build_recipe({KINDS["objective"].setting: name}, overrides)
    return tried(CHECKS, failures(named_objective(recipe.objective)))


def _optimizers() -> Collection[str]:
    from heliostat.optim.registry import REGISTRY

    return REGISTRY


def _is_optimizer(part: Any) -> bool:
    builds = hasattr(part, "build") or hasattr(part, "build_over")
    return isinstance(part, type) and dataclasses.is_dataclass(part) and builds


def _try_optimizer(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import build_recipe
    from heliostat.optim.conformance import CHECKS, failures

    recipe = build_recipe({KINDS["optimizer"].setting: name}, overrides)
    return tried(CHECKS, failures(recipe.optimizer))


def _engines() -> Collection[str]:
    from heliostat.rollout import ENGINES

    return ENGINES


def _has(*methods: str) -> Callable[[Any], bool]:
    return lambda part: isinstance(part, type) and all(callable(getattr(part, each, None)) for each in methods)


def _try_engine(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import ConfigError, build_recipe
    from heliostat.rollout.conformance import CHECKS, failures

    section = build_recipe({KINDS["engine"].setting: name}, overrides).rollout
    if section.server_url:
        raise ConfigError(f"'{name}' samples on a server, which serves another model than the one of these checks")
    return tried(CHECKS, failures(section))


def _verifiers() -> Collection[str]:
    from heliostat.tasks.verifiers.builtin import VERIFIERS

    return VERIFIERS


def _is_verifier(part: Any) -> bool:
    return not isinstance(part, type) and callable(part) and "completions" in inspect.signature(part).parameters


def _try_verifier(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import ConfigError
    from heliostat.tasks.settings import build_verifiers
    from heliostat.tasks.verifier_conformance import CHECKS, failures

    if overrides:
        raise ConfigError(f"the checks of a verifier take no settings, not {overrides[0]}")
    (weighted,) = build_verifiers([{"name": name}])
    return tried(CHECKS, failures(weighted.verifier))


def _environments() -> Collection[str]:
    from heliostat.tasks.environments.shipped import SHIPPED

    return SHIPPED


def _try_environment(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import build_recipe
    from heliostat.tasks.environment_audit.conformance import failures

    recipe = build_recipe({KINDS["environment"].setting: name}, overrides)
    return {text: (text, sentence) for text, sentence in failures(recipe.environment).items()}


def _trackers() -> Collection[str]:
    from heliostat.trackers import TRACKERS

    return TRACKERS


def _try_tracker(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import build_recipe
    from heliostat.tracker_conformance import CHECKS, failures

    return tried(CHECKS, failures(build_recipe({KINDS["tracker"].setting: [name]}, overrides).tracking))


def _judges() -> Collection[str]:
    from heliostat.train.judges.opening import JUDGES

    return JUDGES


def _try_judge(name: str, overrides: Sequence[str]) -> Found:
    from heliostat.config import build_recipe
    from heliostat.train.judges.conformance import CHECKS, failures

    return tried(CHECKS, failures(build_recipe({KINDS["judge"].setting: name}, overrides)))


SUITES: dict[str, Suite] = {
    "objective": Suite("objective", _objectives, _is_objective, _try_objective),
    "optimizer": Suite("optimizer", _optimizers, _is_optimizer, _try_optimizer),
    "engine": Suite("rollout", _engines, _has("sample", "take_counts"), _try_engine),
    "verifier": Suite("task", _verifiers, _is_verifier, _try_verifier),
    "environment": Suite("environment", _environments, _has("reset", "step"), _try_environment),
    "tracker": Suite("tracking", _trackers, _has("log", "close"), _try_tracker),
    "judge": Suite("judge", _judges, _has("score"), _try_judge),
}
"""The suite of every kind."""
