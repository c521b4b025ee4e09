"""Write the pages that only repeat what the code declares: every recipe setting, and every metric.

    python docs/generate.py            write reference/settings.md and reference/metrics.md
    python docs/generate.py --check    exit code 1 if one of them is out of date

Left out: pages that people write, and the Python API, which mkdocstrings reads from the docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from heliostat.config import describe_keys, describe_sections, recipe_names
from heliostat.config.renamed import RENAMED
from heliostat.models import TinyShape
from heliostat.objectives.registry import OBJECTIVES
from heliostat.optim.registry import REGISTRY
from heliostat.tasks.settings import TaskSettings
from heliostat.tasks.sources.data_files import FileSettings
from heliostat.tasks.sources.environment import EnvironmentTaskSettings
from heliostat.tasks.sources.reasoning_gym import GymSettings
from heliostat.tasks.sources.worked_solutions import WRITERS
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import VERIFIERS
from heliostat.traces.cuts import POLICIES
from heliostat.tracking import METRICS

FOLDER = Path(__file__).parent
NOTICE = "<!-- Written by docs/generate.py from what the code declares: do not edit. -->"
TYPE_NAMES = {str: "text", int: "int", float: "float", bool: "true or false", dict: "table", Any: "any", tuple: "list"}
BOUND_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
AREAS = {
    "reward": "What the verifiers gave.",
    "policy": "The policy that sampled, and how far the step moved it. `new` is the policy after the step's updates, "
    "`old` the one before them; [theory](../explanation/theory.md) gives each number's value at the exact optimum.",
    "teacher": "The distance to a teacher ([distillation](../how-to/distill.md)).",
    "judge": "Scores of a judge ([judges](../how-to/judges.md)).",
    "mismatch": "Sampler against trainer, on the tokens of a step's first update.",
    "answers": "How different the answers of one group are.",
    "text": "How much completions repeat themselves and each other.",
    "length": "Completions, in tokens.",
    "agent": "Trajectories of several turns, in runs with an environment; numbers by turn end in `:1`, `:2`, `:3` or "
    "`:4+`.",
    "loss": "What was minimised.",
    "optim": "The optimizer.",
    "eval": "Held-out problems: every `eval.every` steps here; before and after training in `evals.jsonl`.",
    "panel": "A fixed panel of held-out problems with fixed seeds, every `guard.panel_every` steps.",
    "feedback": "Supervised steps that [hold a statistic](../how-to/guard.md#supervised-training) of own text.",
    "guard": "What [the guard](../how-to/guard.md) does.",
    "time": "Seconds on the clock, per step unless it says otherwise.",
    "speed": "Tokens per second.",
    "compute": "Running totals.",
    "prefix": "Problems that begin with part of a stored solution ([prefixes](../how-to/prefixes.md)).",
}


# -- settings ----------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every key of a recipe, and the keys that named things own."""
    shipped = ", ".join(f"`{name}`" for name in recipe_names())
    parts = [
        NOTICE,
        "# Settings",
        f"""A recipe is a TOML file. Every key has a default, so a recipe holds only what differs; shipped ones
({shipped}) are printed by `heliostat recipes`. A file may begin with `extends = "demo"` to start from another recipe.
Any key can be set on the command line, as `--section.key VALUE` or `--section.key=VALUE`, and in Python by its dotted
name. An unknown key, a wrong type or a contradiction is refused in one line before anything is loaded.""",
        "`heliostat train --help` prints the first part of this page. The run folder's `recipe.toml` holds every value "
        "a run was made with.",
    ]
    for name, keys in groupby(describe_keys(), lambda key: key.name.partition(".")[0]):
        parts += [f"## `[{name}]`", describe_sections()[name]]
        rows = [(f"`{key.name}`", _cell(key.type), _default(key.default), _cell(key.description)) for key in keys]
        parts.append(_table(("key", "type", "default", "meaning"), rows))
        parts += _NAMED.get(name, list)()
    parts += ["## Renamed settings", "An old name is accepted with a notice until the version in the last column."]
    rows = [(f"`{old}`", f"`{new.name}`", new.removed_in) for old, new in RENAMED.items()]
    parts.append(_table(("old name", "new name", "refused from version"), rows))
    return "\n\n".join(parts) + "\n"


def _tiny() -> list[str]:
    return ["### `model.settings` of the tiny model", _fields_table(TinyShape, prefix="model.settings.")]


def _tasks() -> list[str]:
    shared = {field.name for field in dataclasses.fields(TaskSettings)}
    known = {"dataset"}  # of the reasoning-gym verifier: the task fills it in
    parts = [
        "A recipe may have several tasks, as `[[task]]` tables; `--task.1.key` means the second.",
        "### Keys of every task",
        _fields_table(TaskSettings, prefix="task.", also=(Task,)),
        "### Keys of a `reasoning-gym/<data set>` task",
        _fields_table(GymSettings, prefix="task.", without=shared),
        "`heliostat tasks show NAME` lists the settings of a data set. Writers of worked solutions:",
        _table(
            ("`task.solution`", "answer after", "of the data sets"),
            [
                (f"`{name}`", f"`{writer.marker}`", ", ".join(f"`{dataset}`" for dataset in writer.datasets) or "any")
                for name, writer in WRITERS.items()
            ],
        ),
        "### Keys of a `file` task",
        _fields_table(FileSettings, prefix="task.", without=shared),
        "### Keys of an `environment` task",
        _fields_table(EnvironmentTaskSettings, prefix="task.", without=shared),
        "### Entries of `task.verifiers`",
        _table(
            ("key", "type", "default", "meaning"),
            [
                ("`name`", "text", "required", f"{', '.join(f'`{name}`' for name in VERIFIERS)}, or `module:function`"),
                *_fields(WeightedVerifier, without={"name", "verifier"}),
            ],
        ),
        "Each verifier's own keys stand beside these; those beside a `module:function` are its keyword arguments.",
    ]
    for name, cls in VERIFIERS.items():
        parts += [f"**`{name}`**: {_headline(cls)}"]
        if _fields(cls, without=known):
            parts.append(_fields_table(cls, without=known))
    return parts


def _objectives() -> list[str]:
    """Every objective with its keys and their defaults; then each key once, since most are shared."""
    parts = ["[The objectives page](objectives.md) says what each one is for.", "### Objectives and their defaults"]
    users: dict[tuple[str, str, str], list[str]] = {}
    lines = []
    for name, cls in OBJECTIVES.items():
        rows = _fields(cls)
        lines.append(
            (f"`{name}`", "<br>".join(f"{key} = {default}" for key, _, default, _ in rows).replace("` = `", " = "))
        )
        for key, kind, _, meaning in rows:
            users.setdefault((key, kind, meaning), []).append(name)
    keys = [
        (f"`objective.{key[1:]}", kind, meaning, "all" if len(names) == len(OBJECTIVES) else ", ".join(names))
        for (key, kind, meaning), names in sorted(users.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    parts += [_table(("objective", "keys and defaults"), lines), "### Keys of objectives"]
    return [*parts, _table(("key", "type", "meaning", "of"), keys)]


def _optimizers() -> list[str]:
    parts = ["### Optimizers"]
    for name, cls in REGISTRY.items():
        parts += [f"**`{name}`**: {_headline(cls)}", _fields_table(cls, prefix="optimizer.")]
    return parts


def _prefixes() -> list[str]:
    parts = ["[The page on prefixes](../how-to/prefixes.md) says what each policy does.", "### Cutting policies"]
    for name, cls in POLICIES.items():
        parts += [f"**`{name}`**: {_headline(cls)}", _fields_table(cls, prefix="prefix.")]
    return parts


_NAMED = {
    "model": _tiny,
    "task": _tasks,
    "objective": _objectives,
    "optimizer": _optimizers,
    "prefix": _prefixes,
}


# -- metrics -----------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every declared metric, by area."""
    parts = [
        NOTICE,
        "# Metrics",
        """A run's `metrics.jsonl` has one line per step, a JSON object with `step` and the numbers of that step; the
same numbers go to TensorBoard, W&B or trackio where a recipe asks for it. A number that was not taken in a step is
absent, one that is not finite is `null`. Steps of a warm start are numbered up to 0, so that the first step of training
is 1. `heliostat metrics` prints this page. A key that is not declared here cannot be logged.""",
    ]
    for area, keys in groupby(METRICS, lambda key: key.partition("/")[0]):
        rows = [(f"`{key}`", METRICS[key].unit, _cell(METRICS[key].meaning)) for key in keys]
        parts += [f"## {area}", AREAS[area], _table(("metric", "unit", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


PAGES = {"reference/settings.md": settings_page, "reference/metrics.md": metrics_page}


# -- reading dataclasses -----------------------------------------------------------------------------------------------


def _fields_table(cls: type[Any], prefix: str = "", without: Iterable[str] = (), also: Sequence[type] = ()) -> str:
    rows = _fields(cls, prefix, without, also)
    if not any(meaning for *_, meaning in rows):  # names that explain themselves
        return _table(("key", "type", "default"), [row[:3] for row in rows])
    return _table(("key", "type", "default", "meaning"), rows)


def _fields(
    cls: type[Any], prefix: str = "", without: Iterable[str] = (), also: Sequence[type] = ()
) -> list[tuple[str, ...]]:
    """One row per field: name, type, default, and what the docstring of the class (or of one in ``also``) says."""
    hints = get_type_hints(cls, include_extras=True)
    meanings = _meanings((*also, *reversed(cls.__mro__)))
    return [
        (
            f"`{prefix}{field.name}`",
            _cell(_type_text(hints[field.name])),
            _field_default(field),
            _cell(meanings.get(field.name, "")),
        )
        for field in dataclasses.fields(cls)
        if field.init and field.name not in without
    ]


def _meanings(classes: Iterable[type]) -> dict[str, str]:
    """The ``Attributes:`` of several docstrings; later classes win. ``a, b: text`` explains both."""
    found: dict[str, str] = {}
    for cls in classes:
        block = re.search(r"^Attributes:\n((?:    .*\n|\n)+)", f"{inspect.cleandoc(cls.__doc__ or '')}\n", re.MULTILINE)
        for entry in re.split(r"\n(?=    \S)", block.group(1).rstrip()) if block else ():
            names, _, text = entry.strip().partition(": ")
            found |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return found


def _headline(cls: type) -> str:
    """The first sentence or paragraph of a docstring."""
    return _markdown(" ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split()))


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        signs = [f"{sign} {value:g}" for bound in arguments[1:] for sign, value in _bounds(bound)]
        return " ".join([_type_text(arguments[0]), " and ".join(signs)]).strip()
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(member) for member in arguments if member is not type(None))
    if origin is tuple and Ellipsis in arguments:
        return f"list of {_type_text(arguments[0])}s"
    if origin is tuple:
        return f"list of {len(arguments)} {_type_text(arguments[0])}s"
    return TYPE_NAMES[origin or hint]


def _bounds(field_info: Any) -> Iterable[tuple[str, float]]:
    for constraint in getattr(field_info, "metadata", ()):
        for name, sign in BOUND_SIGNS.items():
            if hasattr(constraint, name):
                yield sign, getattr(constraint, name)


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _default(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _default(field.default)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value == "" or (isinstance(value, tuple | list | Mapping) and not value):
        return "empty"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return _markdown(text).removesuffix(".").replace("|", "\\|")


def _markdown(text: str) -> str:
    """Docstrings mark code with two backticks; outside of it, ``<`` would begin HTML."""
    pieces = text.replace("``", "`").split("`")
    return "`".join(piece if number % 2 else piece.replace("<", "&lt;") for number, piece in enumerate(pieces))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` only compare; returns the exit code."""
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    if "--check" in arguments and stale:
        print(f"out of date: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
