"""Which charts a page has, what stands beside them, and that no metric is lost."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from heliostat.report.charts.figures import Figures
from heliostat.report.charts.panels import GROUPS, SHOWN_ELSEWHERE, ChartPanel, declared, remaining_panels
from heliostat.report.runs.read import Run, read_run, read_runs
from heliostat.tracking import METRICS
from tests.unit.report.synthetic import Shape, make_run


def run_of(label: str = "r", **series: list[float | None]) -> Run:
    """A run that logged ``area__quantity`` series from step 1 on."""
    length = max(len(values) for values in series.values())
    lines = [
        {"step": float(step + 1)} | {key.replace("__", "/"): values[step] for key, values in series.items()}
        for step in range(length)
    ]
    return Run(label, Path("r"), metrics=lines, recipe={"rollout": {"max_parity_gap": 1e-3}})


def test_every_declared_metric_is_shown_somewhere() -> None:
    everything = Run("r", Path("r"), metrics=[{"step": 1.0} | dict.fromkeys(METRICS, 1.0)])
    in_panels = {key for group in GROUPS for panel in group.panels for key in panel.keys}
    in_rest = {key for panel in remaining_panels([everything]) for key in panel.keys}
    assert in_panels | in_rest | SHOWN_ELSEWHERE >= METRICS.keys()
    assert {key.partition(":")[0] for key in in_panels} <= METRICS.keys()


def test_metrics_that_share_an_axis_share_a_unit_and_have_a_name_each() -> None:
    for group in GROUPS:
        for panel in group.panels:
            assert len({declared(key).unit for key in panel.keys}) == 1
            assert len(panel.names) in (0, len(panel.keys))
            assert panel.names or len(panel.keys) == 1
            assert panel.reading.endswith(".")


def test_identifiers_of_figures_are_unique(finished: Path) -> None:
    figures = Figures([read_run(finished)])
    drawn = [figures.hero(), figures.pass_at_k()]
    drawn += [figures.panel(panel) for group in GROUPS for panel in group.panels]
    assert len(figures.hover) == len([figure for figure in drawn if figure])


def test_a_metric_nobody_knows_is_left_out_and_a_new_or_named_one_is_drawn() -> None:
    run = run_of(time__eval=[1.0], reward__failures=[0.0], made__up=[1.0])
    run = Run("r", Path("r"), metrics=[dict(run.metrics[0]) | {"eval/pass@1:chain_sum": 0.5}])
    assert [panel.keys for panel in remaining_panels([run])] == [("eval/pass@1:chain_sum",), ("reward/failures",)]
    assert declared("eval/pass@1:chain_sum") is METRICS["eval/pass@1"]


def test_every_panel_says_what_it_shows_and_how_to_read_it(finished: Path) -> None:
    figures = Figures([read_run(finished)])
    for group in GROUPS:
        for panel in group.panels:
            figure = figures.panel(panel)
            if figure is not None:
                assert declared(panel.keys[0]).meaning[1:] in html.unescape(figure)
                assert panel.reading in html.unescape(figure)


def test_nothing_logged_means_no_figure() -> None:
    figures = Figures([run_of(policy__entropy=[None, None])])
    assert figures.hero() is None
    assert figures.pass_at_k() is None
    assert figures.panel(ChartPanel("Entropy", ("policy/entropy",), "x.")) is None
    assert figures.hover == {}


def test_warm_start_and_training_have_axes_of_their_own(finished: Path) -> None:
    figures = Figures([read_run(finished)])
    for group in GROUPS:
        for panel in group.panels:
            if figures.panel(panel) is not None:
                low, high = figures.hover[panel.keys[0].replace("/", "-").replace("@", "-")]["x"]
                assert (high <= 0) if panel.warm_start else (low >= 0)
    figures.hero()
    assert figures.hover["pass-1"]["x"] == [0, 200]


def test_a_reference_from_the_recipe_is_named_even_where_it_is_far_away() -> None:
    panel = ChartPanel("Gap", ("policy/sampler_gap",), "x.", reference=("rollout.max_parity_gap", "bound"))
    near = Figures([run_of(policy__sampler_gap=[5e-4, 8e-4])]).panel(panel)
    far = Figures([run_of(policy__sampler_gap=[1e-6, 2e-6])]).panel(panel)
    unknown = Figures([Run("r", Path("r"), metrics=[{"step": 1.0, "policy/sampler_gap": 1e-6}])]).panel(panel)
    assert near is not None
    assert "bound (0.001)" in near
    assert far is not None
    assert "bound (0.001, outside this chart)" in far
    assert unknown is not None
    assert "bound" not in unknown


def test_a_bound_that_the_run_chose_is_the_one_that_it_kept() -> None:
    panel = ChartPanel("Gap", ("policy/sampler_gap",), "x.", reference=("rollout.max_parity_gap", "bound"))
    lines, recipe = [{"step": 1.0, "policy/sampler_gap": 1e-4}], {"rollout": {"max_parity_gap": 0.0}}
    going = Figures([Run("r", Path("r"), metrics=lines, recipe=recipe)]).panel(panel)
    chosen = {"chosen": {"rollout.max_parity_gap": 0.5}}
    ended = Figures([Run("r", Path("r"), metrics=lines, recipe=recipe, summary=chosen)]).panel(panel)
    assert going is not None
    assert "bound" not in going
    assert ended is not None
    assert "bound (0.5, outside this chart)" in ended


def test_one_run_colours_its_lines_and_several_runs_have_a_colour_each(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, Shape(num_steps=30, seed=seed)) for seed, name in enumerate("abc")]
    panel = next(panel for group in GROUPS for panel in group.panels if panel.names)
    for count, looks in ((1, ["c1 d0", "c2 d0"]), (3, ["c1 d0", "c1 d1", "c2 d0", "c2 d1", "c3 d0", "c3 d1"])):
        figures = Figures(read_runs(folders[:count]))
        figures.panel(panel)
        lines = figures.hover["reward-mean"]["lines"]
        assert [line["css"].rsplit(" ", 1)[0] for line in lines] == looks
        assert len({line["label"] for line in lines}) == len(looks)


def test_a_run_without_a_metric_leaves_the_others_their_colours() -> None:
    figures = Figures([run_of("a", reward__success=[0.1]), run_of("b", policy__entropy=[0.5, 0.4])])
    figures.panel(ChartPanel("Entropy", ("policy/entropy",), "x."))
    (line,) = figures.hover["policy-entropy"]["lines"]
    assert line["css"] == "c2 d0 run1"
    assert line["run"] == 1


@pytest.mark.parametrize("num_runs", [1, 4])
def test_points_per_line_shrink_as_runs_are_added(num_runs: int) -> None:
    values: list[float | None] = [float(step % 17) for step in range(3000)]
    figures = Figures([run_of(f"r{index}", policy__entropy=values) for index in range(num_runs)])
    figures.panel(ChartPanel("Entropy", ("policy/entropy",), "x."))
    points = sum(len(line["x"]) for line in figures.hover["policy-entropy"]["lines"])
    assert points <= 400


def test_turns_are_drawn_only_where_there_are_turns() -> None:
    from heliostat.report.sections.page_sections import chart_sections

    plain = run_of(policy__entropy=[0.5, 0.4])
    turns = {"agent/turns": 2.0, "agent/valid_calls": 0.5} | {f"agent/entropy:{n}": 0.1 for n in ("1", "2", "3", "4+")}
    several = Run("s", Path("s"), metrics=[{"step": float(step), "policy/entropy": 0.5} | turns for step in (1, 2)])
    anchors = [section.anchor for section in chart_sections([plain], Figures([plain]))]
    assert "turns" not in anchors
    (section,) = (one for one in chart_sections([several], Figures([several])) if one.anchor == "turns")
    for name in ("turn 1", "turn 2", "turn 3", "later turns", "Turns with a call that works"):
        assert name in section.body
    assert "Log-ratio by turn" not in section.body
    assert section.body.count("entropy of sampled tokens by turn") == 1, "what they share is said once"


def test_a_limit_that_does_not_apply_is_no_reference() -> None:
    panel = ChartPanel("Length", ("length/mean",), "x.", reference=("rollout.max_new_tokens", "budget"))
    recipe = {"rollout": {"max_new_tokens": 24}, "environment": {"name": "", "tools": []}}
    assert panel.level(Run("r", Path("r"), recipe=recipe)) == (24.0, "budget")
    assert panel.level(Run("r", Path("r"), recipe=recipe | {"environment": {"name": "maze"}})) is None
