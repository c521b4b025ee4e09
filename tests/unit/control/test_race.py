"""The command's parts: known settings, a run folder of two algorithms, refusals before work, and the page."""

import json
import re

import pytest

from heliostat.cli import main
from heliostat.cli.control import read_settings
from heliostat.config import ConfigError
from heliostat.control import Rank1
from heliostat.control.algorithms import ALGORITHMS, algorithm_class, arguments_of, setup_of
from heliostat.control.runs import last_quarter, read_control
from heliostat.report.control_page import write_control_page


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "Unknown-v0"])
def test_known_settings_are_arguments_of_their_algorithm(algo, env):
    settings = setup_of(algo, env).settings
    assert set(settings) <= set(arguments_of(algo, settings))
    assert algorithm_class(algo).__name__.lower() == algo


def test_settings_of_the_direction_go_into_it():
    found = arguments_of("smac", {"learning_rate": 0.3, "num_scores": 16, "damping": 0.1})
    assert found == {"learning_rate": 0.3, "direction": Rank1(num_scores=16, damping=0.1)}
    with pytest.raises(ValueError, match=r"smac has no setting 'num_score' \(did you mean 'num_scores'"):
        arguments_of("smac", {"num_score": 16})
    with pytest.raises(ValueError, match="a2c has no setting 'num_scores'"):
        arguments_of("a2c", {"num_scores": 16})
    with pytest.raises(ValueError, match="unknown algorithm 'trop'"):
        setup_of("trop", "CartPole-v1")


def test_words_are_read_as_toml():
    assert read_settings(["a=0.5", "b=true", "c=rank1", "d=[1, 2]"]) == {"a": 0.5, "b": True, "c": "rank1", "d": [1, 2]}
    with pytest.raises(ConfigError, match="--set takes key=value"):
        read_settings(["num_scores"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "run"
    words = ["--algo", "smac", "a2c", "--steps", "600", "--seeds", "2", "--run", str(path), "--set", "gamma=0.9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(path / "logs"))
        assert main(["control", "CartPole-v1", *words]) == 0
    return path


@pytest.mark.slow
def test_a_run_folder_holds_every_algorithm_and_seed(folder):
    run = read_control(folder)
    assert not (folder / "logs").exists(), "the peer's loggers write nothing, here or in the temporary folder"
    assert run.algos == ["smac", "a2c"]
    assert set(run.evaluations) == {(algo, seed) for algo in run.algos for seed in (0, 1)}
    for rows in run.evaluations.values():
        assert rows[0]["step"] == 0
        assert rows[-1]["step"] >= 600
        assert [row["cpu_s"] for row in rows] == sorted(row["cpu_s"] for row in rows)
        assert 0 < rows[-1]["update_s"] < rows[-1]["cpu_s"]
    settings = run.about["settings"]["smac"]
    assert (settings["gamma"], settings["learning_rate"]) == (0.9, 0.3)
    assert "num_scores=16" in settings["direction"]
    low, middle, high = (getattr(run.final("smac"), end) for end in ("low", "value", "high"))
    assert low <= middle <= high
    assert {path.name for path in (folder / "models").iterdir()} == {f"{a}-{s}.zip" for a in run.algos for s in (0, 1)}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_returns_in_any_process(folder):
    from heliostat.control.training_run import TrainingRun, run_training

    here = run_training(TrainingRun("CartPole-v1", "smac", 1, 600, {"gamma": 0.9}))
    there = read_control(folder).evaluations["smac", 1]
    assert [(row["step"], row["return"]) for row in here] == [(row["step"], row["return"]) for row in there]


@pytest.mark.slow
def test_the_page_is_one_file_with_every_curve(folder):
    page = (folder / "control.html").read_text()
    assert page == write_control_page(folder).read_text()
    assert "CartPole-v1" in page
    assert {"chart-return-steps", "chart-return-seconds"} <= set(re.findall(r'id="([\w-]+)"', page))
    assert not re.search(r'(?:src|href)="https?://', page)
    hover = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert [line["label"] for line in hover["return-steps"]["lines"]] == ["SMAC", "A2C"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CartPole-v9"], "gymnasium has no environment 'CartPole-v9' (did you mean 'CartPole-v"),
        (["CartPole-v1", "--set", "nscores=3"], "smac has no setting 'nscores'"),
        (["CartPole-v1", "--set", "num_scores=0"], "num_scores must be at least 1"),
    ],
    ids=str,
)
def test_mistakes_are_refused_before_a_folder_is_made(words, message, tmp_path, capsys):
    assert main(["control", *words, "--run", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_is_taken_is_refused(folder, tmp_path, capsys):
    assert main(["control", "CartPole-v1", "--run", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not a folder of heliostat control"):
        read_control(tmp_path)


def test_the_last_quarter_is_where_a_seed_ends():
    assert last_quarter([{"return": r} for r in (500.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)]) == 7.0
