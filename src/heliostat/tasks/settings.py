"""Check the keys of a ``[[task]]`` section, and build its verifiers before any problem is loaded.

Left out: the keys of one source (``sources.reasoning_gym``, ``sources.data_files``), which extend ``TaskSettings``
there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field

from heliostat.config import ConfigError, build_checked, nearest
from heliostat.named_imports import path_of, resolve, running_script
from heliostat.tasks.data.in_memory import PREFIX, find_function
from heliostat.tasks.sandbox.pickling import dump_function
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import VERIFIERS, Function, Verifier, named
from heliostat.tasks.verifiers.reward_functions import COMPLETION_IDS
from heliostat.types import Problem


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Keys that every source of problems accepts.

    Attributes:
        label: the task's name in results; empty: the source chooses.
        template: the prompt, with ``{question}`` in it; other columns (of reasoning-gym: metadata) may be named too,
            and columns inside them: ``{extra_info.passage}``.
        verifiers: tables with ``name``, and optionally ``weight``, ``sees`` and the verifier's own settings.
        import_from: folder that functions of verifiers and solutions are imported from, besides the working directory;
            a recipe file names its own where they are there.
        answer_after: marker before the answer; ``None``: the worked-solution writer's own, if there is one.
    """

    label: str = ""
    template: str = "{question}"
    verifiers: tuple[dict[str, Any], ...] = ()
    import_from: str = ""
    answer_after: str | None = None
    shaped: bool = False
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    memory_mb: Annotated[int, Field(ge=16)] = 1024
    num_workers: Annotated[int, Field(ge=1)] = 1
    on_failure: Literal["zero", "stop"] = "zero"

    def __post_init__(self) -> None:
        fields = fields_of(self.template)
        parts = [part for name in fields for part in name.split(".")]
        if not fields or not all(part.isidentifier() and not part.startswith("__") for part in parts):
            raise ValueError(
                f"template {self.template!r} must contain {{question}} (or another column's name in braces)"
            )


@dataclass(frozen=True, kw_only=True)
class _VerifierTable:
    """The keys that every verifier's table accepts."""

    name: str
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    sees: Literal["answer", "completion"] = "answer"
    settings: dict[str, Any] = field(default_factory=dict)


def build_verifiers(tables: Iterable[Mapping[str, Any]], folder: str = "") -> tuple[WeightedVerifier, ...]:
    """Build a task's verifiers from their tables.

    Args:
        folder: where functions are imported from, besides the working directory.

    Raises:
        ConfigError: a name, key or value is wrong, a name occurs twice, or no verifier has positive weight.
    """
    built = tuple(_build_verifier(table, folder) for table in tables)
    names = [weighted.name for weighted in built]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"task.verifiers names '{name}' twice; scores are kept by name, so use it once")
    if not any(weighted.weight > 0 for weighted in built):
        raise ConfigError("task.verifiers needs at least one verifier with a positive weight to decide on success")
    return built


def _build_verifier(table: Mapping[str, Any], folder: str) -> WeightedVerifier:
    if "name" not in table:
        raise ConfigError(f"every entry of task.verifiers needs a name: one of {', '.join(VERIFIERS)}, module:function")
    own = {key: value for key, value in table.items() if key in ("name", "weight", "sees")}
    rest = {key: value for key, value in table.items() if key not in own}
    checked = build_checked(_VerifierTable, own, "task.verifiers")
    return WeightedVerifier(
        checked.name.removeprefix(PREFIX), _make(checked.name, rest, folder), checked.weight, checked.sees
    )


def _make(name: str, settings: dict[str, Any], folder: str) -> Verifier:
    if path := path_of("verifier", name, VERIFIERS):
        return _function(path, settings, folder)
    return build_checked(VERIFIERS[name], settings, f"task.verifiers.{name}")


def _function(name: str, settings: dict[str, Any], folder: str) -> Function:
    """Build the verifier of a user's function: by reference if the verifier processes can import it, else by value."""
    try:
        if name.startswith(PREFIX):
            function = find_function(name)
            content = dump_function(function)
        else:
            function = resolve(name, folder)
            script = running_script(name.partition(":")[0])
            content = b"" if script is None else dump_function(function)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"task.verifiers: {error}") from error
    return Function(name.removeprefix(PREFIX), settings, content, folder, function if content else None)


def make_task(
    settings: TaskSettings,
    name: str,
    splits: tuple[tuple[Problem, ...], tuple[Problem, ...]],
    verifiers: tuple[WeightedVerifier, ...],
    answer_after: str,
) -> Task:
    """Build a task from its (train, held-out) problems and the keys that every source accepts."""
    train, heldout = splits
    return Task(
        name=name,
        train=train,
        heldout=heldout,
        verifiers=verifiers,
        shaped=settings.shaped,
        answer_after=answer_after,
        timeout_s=settings.timeout_s,
        memory_mb=settings.memory_mb,
        num_workers=settings.num_workers,
        on_failure=settings.on_failure,
    )


def check_needs(task: Task) -> None:
    """Refuse a task whose verifiers need columns or answers that its problems lack.

    Raises:
        ConfigError: an oracle answer is missing, or a function has a parameter that no column fills.
    """
    problems = task.train + task.heldout
    for weighted in task.verifiers:
        if weighted.verifier.needs_answer:
            for problem in problems:
                if problem.answer is None:
                    raise ConfigError(
                        f"verifier '{weighted.name}' compares with an oracle answer, but problem {problem.problem_id} "
                        "has none; set task.answer_column, or use a verifier that needs no answer"
                    )
        if isinstance(weighted.verifier, Function):
            _check_parameters(weighted.verifier, problems)


def _check_parameters(verifier: Function, problems: tuple[Problem, ...]) -> None:
    function = verifier.resolved()
    _check_kind(verifier.path, function)
    columns = set(problems[0].columns).intersection(*(problem.columns for problem in problems))
    given = {"prompts", "completions", COMPLETION_IDS} | columns | set(verifier.arguments)
    own = sorted(named(function).keys() - {"prompts", "completions", COMPLETION_IDS} - columns)
    for key in verifier.arguments:
        if key not in named(function):  # **kwargs would accept it and probably never read it
            raise ConfigError(
                f"'{verifier.path}' takes no argument '{key}'{nearest(key, own)}; it takes: {', '.join(own) or 'none'}"
            )
    for name, parameter in named(function).items():
        if parameter.default is parameter.empty and name not in given:
            raise ConfigError(
                f"'{verifier.path}' needs '{name}'{nearest(name, given)}; the data has: {', '.join(sorted(columns))}"
            )


def _check_kind(path: str, function: Any) -> None:
    """Refuse callables that never return a list of rewards, whatever their arguments."""
    called = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
    if isinstance(function, type):
        raise ConfigError(f"'{path}' is a class; give an object of it, or a function")
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigError(f"'{path}' yields its rewards; let it return a list with one number per completion")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise ConfigError(
                f"'{path}' takes '{parameter.name}' by position only, and rewards are called by name "
                "(prompts=..., completions=..., and the columns); take the / out of its parameters"
            )


def render(template: str, question: str, columns: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Render a question with the template.

    A field may name a column inside a column: ``{extra_info.passage}``.

    Returns:
        The text, and the parts of it, as (start, end), that the template wrote and not the data.

    Raises:
        ConfigError: the template names a column that is not there.
    """
    values = {**columns, "question": question}
    text, markup = "", []
    for literal, name, form, conversion in Formatter().parse(template):
        if literal:
            markup.append((len(text), len(text) + len(literal)))
            text += literal
        if name is not None:
            value = Formatter().convert_field(_value(values, name), conversion)
            text += format(value, Formatter().vformat(form or "", (), values))
    return text, tuple(markup)


def _value(values: Mapping[str, Any], name: str) -> Any:
    found: Any = values
    for part in [name] if name in values else name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigError(
                f"task.template names '{name}'{nearest(name, values)}; there are: {', '.join(map(str, values))}"
            )
        found = found[part]
    return found


def fields_of(template: str) -> list[str]:
    """Return the names in braces in a template."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r} is not a format text: {error}") from None
