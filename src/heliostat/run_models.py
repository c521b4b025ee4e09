"""A run folder in place of a model or a recipe: ``runs/mine`` means the model that it saved, or the recipe it ran.

Left out: loading either (``models``, ``config``), and everything else in a run folder (``train.run_folder``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from heliostat.arguments import PathArg, as_path, as_text
from heliostat.config import ConfigError, Recipe, build_recipe, load_recipe

RECIPE, MODEL = "recipe.toml", "model"


def run_folder_of(path: PathArg) -> Path | None:
    """Return the run folder that ``path`` is, or whose saved model ``path`` is; ``None`` for any other model."""
    folder = as_path(path)
    for each in (folder, folder.parent) if folder.name == MODEL else (folder,):
        if (each / RECIPE).is_file() and not (each / "config.json").is_file():
            return each
    return None


def model_of(path: PathArg) -> str:
    """Return the folder of the model that a run saved, if ``path`` is a run folder; else ``path``.

    Raises:
        ConfigError: the run has saved no model yet.
    """
    run = run_folder_of(path)
    if run is None or run != as_path(path):
        return as_text(path)
    if not (run / MODEL).is_dir():
        raise ConfigError(
            f"run folder '{path}' has no model yet: a run saves it at its end; the command that began it continues it "
            f"with --run {path}"
        )
    return str(run / MODEL)


def recipe_of(models: Iterable[PathArg]) -> str | None:
    """Return the recipe file of the runs that models come from; ``None`` if none of them comes from a run.

    Raises:
        ConfigError: two runs had other problems, so neither recipe is that of both.
    """
    runs = list(dict.fromkeys(run for model in models if (run := run_folder_of(model)) is not None))
    if not runs:
        return None
    asked = [_problems(load_recipe(str(run / RECIPE))) for run in runs]
    if any(other != asked[0] for other in asked):
        raise ConfigError(
            f"{' and '.join(map(str, runs))} ran on other problems (task, environment or run.seed); name the recipe "
            "whose problems both are to solve with --recipe"
        )
    return str(runs[-1] / RECIPE)


def recipe_for(models: Iterable[PathArg], asked: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe that was asked for, else that of the runs that models come from, else the default settings.

    Args:
        models: run folders, or any other models; a run folder brings its recipe along.
        asked: a shipped recipe's name, the path of a TOML file, or a run folder.
        overrides: settings of the command line, which come last.

    Raises:
        ConfigError: the recipe or a setting is wrong, or two runs had other problems.
    """
    name = asked or recipe_of(models)
    return load_recipe(name, overrides) if name else build_recipe({}, overrides)


def _problems(recipe: Recipe) -> tuple[object, ...]:
    return recipe.task, recipe.environment, recipe.run.seed
