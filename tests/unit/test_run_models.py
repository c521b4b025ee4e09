"""A run folder means its saved model where a model is expected, and its recipe where a recipe is."""

import pytest

import heliostat
from heliostat.config import ConfigError, build_recipe, dump_recipe, is_recipe, load_recipe
from heliostat.models import load_model
from heliostat.run_models import model_of, recipe_of, run_folder_of
from tests.support import small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a recipe and a saved model, as a run leaves them."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    recipe = small.recipe(folder.parent, train__num_steps=2)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    loaded = load_model(recipe.model, seed=5)
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder / "model")
    return folder


def test_a_run_folder_is_its_model_and_its_recipe(run):
    assert run_folder_of(run) == run_folder_of(run / "model") == run
    assert model_of(str(run)) == model_of(str(run / "model")) == str(run / "model")
    assert is_recipe(str(run))
    assert load_recipe(str(run)) == load_recipe(recipe_of([run])) == load_recipe(str(run / "recipe.toml"))
    assert load_recipe(str(run), {"train.num_steps": 3}).train.num_steps == 3
    weights = load_model(build_recipe({"model.path": str(run)}).model, 0).model.state_dict()
    assert all((weights[name] == value).all() for name, value in load_model_at(run / "model").items())


def load_model_at(folder):
    return load_model(build_recipe({"model.path": str(folder)}).model, 0).model.state_dict()


@pytest.mark.parametrize("name", ["tiny", "org/name", "no/such/folder"])
def test_other_models_are_themselves_and_bring_no_recipe(name):
    assert (run_folder_of(name), model_of(name), recipe_of([name])) == (None, name, None)


def test_a_run_without_a_model_is_refused(tmp_path):
    (tmp_path / "recipe.toml").write_text(dump_recipe(build_recipe({})))
    with pytest.raises(ConfigError, match="has no model yet: a run saves it at its end"):
        model_of(str(tmp_path))


def test_runs_on_other_problems_need_a_recipe(run, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, changes in ((same, {"train.num_steps": 9}), (other, {"run.seed": 7})):
        folder.mkdir()
        (folder / "recipe.toml").write_text(dump_recipe(load_recipe(str(run), changes)))
    assert recipe_of(["tiny", run, same]) == str(same / "recipe.toml")
    with pytest.raises(ConfigError, match=r"ran on other problems .* with --recipe"):
        recipe_of([run, other])


@pytest.mark.slow
def test_functions_use_the_runs_own_recipe(run):
    report = heliostat.evaluate(run, num_problems=2, num_samples=1, greedy=False)
    assert [result.task for result in report.evaluations[0].results] == ["sums", "sums"]
    assert len(heliostat.sample(run, num_samples=1)) == 3


@pytest.mark.slow
def test_commands_use_the_runs_own_recipe(run, capsys):
    from heliostat.cli.entry import main

    assert main(["tasks", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "80 training problems, 20 held out" in shown
    assert "answer_column = 'answer'" in shown
    assert "example 3:" in shown
    assert main(["eval", str(run), "--problems", "2", "--samples", "1"]) == 0
    assert "sums" in capsys.readouterr().out
    assert main(["eval", "tiny"]) == 2
    assert "no run of tiny to take the recipe from" in capsys.readouterr().err
