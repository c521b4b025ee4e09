"""Phases, bars and tables: amounts add up, defaults are told from changes, and absent things are absent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from heliostat.config import Recipe
from heliostat.report.charts.bars import stacked_bars
from heliostat.report.runs.phases import flops, seconds, tokens
from heliostat.report.runs.read import Run, read_run, read_runs
from heliostat.report.sections.tables import by_task, comparison, differences, flatten, recipe_table, versions_table
from heliostat.report.sections.verdict import judge
from tests.unit.report.synthetic import Shape, make_run


def text_of(markup: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup))


def test_seconds_come_from_the_summary_and_add_up_to_its_total(finished: Path) -> None:
    run = read_run(finished)
    assert sum(seconds(run).values()) == pytest.approx(run.summary["seconds"]["total"])
    assert seconds(run)["other"] == pytest.approx(4.1)
    assert flops(run) == {k: v for k, v in run.summary["flops"].items() if v}
    assert tokens(run) == run.summary["tokens"]


def test_without_a_summary_phases_are_added_up_from_the_log(killed: Path) -> None:
    run = read_run(killed)
    logged = [line for line in run.metrics if "time/rollout" in line]
    assert seconds(run)["rollout"] == pytest.approx(sum(line["time/rollout"] or 0 for line in logged))
    assert sum(seconds(run).values()) == pytest.approx(logged[-1]["time/total"])
    assert flops(run)["update"] == logged[-1]["compute/update_flops"]
    assert tokens(run) == logged[-1]["compute/tokens"]


def test_unknown_phases_count_as_everything_else_and_zeros_take_no_room() -> None:
    run = Run("r", Path("r"), summary={"seconds": {"rollout": 2, "compile": 3, "verify": 0, "total": 10, "eval": None}})
    assert seconds(run) == {"rollout": 2, "other": 8}
    assert seconds(Run("r", Path("r"))) == {}
    assert flops(Run("r", Path("r"), summary={"flops": "many"})) == {}


def test_slices_fill_the_longest_bar_and_others_in_proportion() -> None:
    rows = [("long", {"rollout": 6.0, "update": 2.0}), ("short", {"rollout": 4.0}), ("none", {})]
    markup = stacked_bars(rows, "Time", lambda amount: f"{amount:g} s", "note")
    widths = [float(width) for width in re.findall(r'<rect x="[\d.]+%" width="([\d.]+)%"', markup)]
    assert widths == [75, 25, 50]
    assert "none: nothing recorded" in markup
    assert "6 s 75%" in text_of(markup)


def test_recipes_show_what_was_changed_and_what_the_default_was(finished: Path) -> None:
    changed, everything = recipe_table(read_run(finished)).split("<details>")
    assert "train.updates_per_step" in changed
    assert re.search(r"anchor is fixed\s+4\s+1\s", text_of(changed))
    assert "rollout.group_size" not in changed  # 8 is the default
    assert "<mark>4</mark>" in everything
    assert "rollout.group_size" in everything
    assert "run.name" not in everything


def test_a_recipe_of_defaults_has_no_changes() -> None:
    recipe = Recipe().model_dump()
    run = Run("r", Path("r"), recipe={**recipe, "task": list(recipe["task"])})
    assert "Every setting has its default value." in recipe_table(run)
    assert "no readable recipe" in recipe_table(Run("r", Path("r")))


def test_settings_are_flattened_to_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": {}}, "task": [{"name": "x"}, {"name": "y"}], "stop": ["\n"], "empty": ()}
    assert dict(flatten(nested)) == {
        "a.b": 1, "a.c": {}, "task.0.name": "x", "task.1.name": "y", "stop": ["\n"], "empty": []
    }  # fmt: skip


def test_several_runs_are_compared_against_the_first(tmp_path: Path) -> None:
    shapes = [Shape(num_steps=10, seed=1), Shape(num_steps=10, seed=1, end=0.45, tau=0.05)]
    runs = read_runs([make_run(tmp_path / name, shape) for name, shape in zip("ab", shapes, strict=True)])
    table = text_of(comparison(runs, [judge(run) for run in runs]))
    assert "Against a" in table
    assert "pmd-mean, τ = 0.05" in table
    differing = differences(runs)
    assert differing is not None
    assert "objective.tau" in differing
    assert "train.num_steps" not in differing
    assert differences(runs[:1]) is None


def test_tasks_are_listed_only_where_there_are_several(finished: Path) -> None:
    run = read_run(finished)
    assert by_task(run) is None
    twofold = replace(run, evaluations=[*run.evaluations, *(replace(row, task="gcd") for row in run.evaluations)])
    table = by_task(twofold)
    assert table is not None
    assert table.count("<tr>") == 3


def test_versions_stand_beside_each_other() -> None:
    runs = [Run("a", Path("a"), versions={"torch": "2.13"}), Run("b", Path("b"), versions={"torch": "2.6", "cpu": "x"})]
    table = versions_table(runs)
    assert table is not None
    assert "torch 2.13 2.6" in text_of(table)
    assert "cpu – x" in text_of(table)
    assert versions_table([Run("a", Path("a"))]) is None
