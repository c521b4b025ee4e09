"""The worlds of the study and their shared starts: a shipped environment with its keywords, and careless weights.

A world's name ends in what sets its number of turns: hops of a lookup, the largest number to guess, a side of a maze.

Left out: which arms there are (``arms``), and one run (``arena``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliostat import sft
from heliostat.config import Recipe, load_recipe

RECIPE = Path(__file__).with_name("recipe.toml")


def _lookup(num_hops: int) -> dict[str, Any]:
    return {"name": "lookup", "num_hops": num_hops, "max_turns": num_hops + 3}


def _guess(max_number: int) -> dict[str, Any]:
    guesses = max_number.bit_length()
    return {"name": "guess-the-number", "max_number": max_number, "max_guesses": guesses, "max_turns": guesses}


def _maze(size: int) -> dict[str, Any]:
    return {"name": "maze", "size": size, "max_turns": 2 * size * size}


WORLDS: Mapping[str, Mapping[str, Any]] = {
    "lookup-1": _lookup(1),
    "lookup-2": _lookup(2),
    "lookup-4": _lookup(4),
    "guess-15": _guess(15),
    "maze-3": _maze(3),
}
"""The ``[environment]`` section of each."""

WARM_STEPS = {"guess-15": 200, "maze-3": 300}
"""Supervised steps where fewer than the recipe's are enough."""

RARE = 0.97
"""Share of slips in the demonstrations of the start of the prefix runs; of other starts it is the recipe's."""


def recipe_of(world: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return the study's recipe in a world, with other changes where asked for."""
    section = {f"environment.{key}": value for key, value in WORLDS[world].items()}
    if world in WARM_STEPS:
        section["warm_start.num_steps"] = WARM_STEPS[world]
    if world == "maze-3":
        section["task.num_train"] = 200  # it has few different problems
    return load_recipe(str(RECIPE), section | dict(changes or {}))


def start_of(world: str, work: Path, slips: float | None = None) -> Path:
    """Return the folder of a world's start; trained once, from the oracle's demonstrations."""
    changes = {} if slips is None else {"task.slips": slips}
    folder = work / (f"start-{world}" + ("" if slips is None else f"-{slips:g}"))
    if not (folder / "model" / "config.json").exists():
        sft(recipe_of(world, changes), run_dir=folder)
    return folder / "model"
