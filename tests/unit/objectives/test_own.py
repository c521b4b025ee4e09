"""Objectives that are not shipped: found by name, tried before a model loads, trained and resumed like the others."""

import dataclasses
import json
import shutil
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from safetensors.torch import load_file

from heliostat.cli import main
from heliostat.config import ConfigError, ObjectiveSection, load_recipe
from heliostat.objectives import Objective, Terms, build_objective
from heliostat.objectives.conformance import failures
from heliostat.train import Display, run_recipe
from tests.support import small

OWN = """
from dataclasses import dataclass

import torch

from heliostat.objectives import Objective, Terms


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    weight: float = 1.0

    def advantages(self, rewards):
        return rewards - rewards.mean()

    def terms(self, logp_new, tokens):
        log_ratio = torch.zeros(len(tokens.num_tokens), dtype=logp_new.dtype).index_add(
            0, tokens.sequence, logp_new - tokens.logp_old
        )
        return Terms(-self.weight * tokens.advantage * log_ratio)

    def can_drop_zero_advantage_groups(self, first_update):
        return True


class Unfinished(Objective):
    def advantages(self, rewards):
        return rewards


class MeanOfPart(Weighted):
    def terms(self, logp_new, tokens):
        return Terms(super().terms(logp_new, tokens).loss / max(1, len(tokens.num_tokens)))


def function(rewards):
    return rewards
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module beside nothing in particular, imported anew in each test."""
    (tmp_path / "own_objectives.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_objectives", None)
    monkeypatch.undo()
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def section(name, folder, **settings):
    return ObjectiveSection(name=f"own_objectives:{name}", import_from=str(folder), **settings)


def test_a_class_of_a_module_is_built_with_its_own_settings(module):
    objective = build_objective(section("Weighted", module, weight=3.0))
    assert (type(objective).__name__, objective.name, objective.weight) == ("Weighted", "Weighted", 3.0)
    with pytest.raises(ConfigError, match=r"unknown key objective\.wieght \(did you mean 'objective\.weight'\?\)"):
        build_objective(section("Weighted", module, wieght=3.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", "module 'own_objectives' has no function 'Missing'"),
        ("function", "is no subclass of heliostat.objectives.Objective"),
        ("Unfinished", "does not define can_drop_zero_advantage_groups, terms"),
        ("MeanOfPart", r"micro-batches add up to .*\(heliostat check own_objectives:MeanOfPart"),
    ],
)
def test_what_cannot_train_is_refused_in_a_sentence(module, name, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build_objective(section(name, module))
    assert "\n" not in str(refused.value)


def test_a_module_that_ends_the_program_is_refused(module):
    (module / "ends_objectives.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"cannot import 'ends_objectives'.*SystemExit.*line 2"):
        build_objective(ObjectiveSection(name="ends_objectives:Mine", import_from=str(module)))


def test_packages_register_objectives_by_entry_points(module, monkeypatch):
    def entry_points():
        return EntryPoints([EntryPoint("weighted", "own_objectives:Weighted", "heliostat.objectives")])

    monkeypatch.setattr("heliostat.named_imports.entry_points", entry_points)
    monkeypatch.syspath_prepend(str(module))
    assert build_objective(ObjectiveSection(name="pmd-mean")).name == "pmd-mean"
    assert type(build_objective(ObjectiveSection(name="weighted"))).__name__ == "Weighted"
    with pytest.raises(ConfigError, match=r"unknown objective 'weihgted' \(did you mean 'weighted'\?\)"):
        build_objective(ObjectiveSection(name="weihgted"))


def test_the_command_prints_a_line_for_each_promise(module, monkeypatch, capsys):
    monkeypatch.chdir(module)
    assert main(["check", "own_objectives:Weighted", "--objective.weight", "2"]) == 0
    assert "keeps 8 of 8 promises" in capsys.readouterr().out
    assert main(["check", "own_objectives:MeanOfPart", "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["failed"]) == ["micro_batches_add_up"]
    assert main(["check", "pmd-mean"]) == 0


def test_a_broken_objective_is_refused_before_a_model_loads(module):
    recipe = small.recipe(module, objective__name="own_objectives:MeanOfPart", model__path="no/such/model")
    with pytest.raises(ConfigError, match="add up to"):
        run_recipe(with_objective(recipe, "MeanOfPart", module), module / "run")
    assert not (module / "run").exists()


def with_objective(recipe, name, folder):
    return recipe.model_copy(update={"objective": section(name, folder)})


class Stopped(Display):
    """A display that ends the run after its first step."""

    def step(self, index, values):
        if "reward/mean" in values:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_a_run_with_it_continues_where_its_module_has_moved(module, tmp_path_factory):
    """The recipe names its module relative to its folder; that folder may be another one when the run goes on."""
    recipe = small.write_recipe(module)
    recipe.write_text(recipe.read_text().replace('name = "pmd-mean"\ntau = 0.2', 'name = "own_objectives:Weighted"'))
    words = [
        "--train.num_steps=2",
        "--train.checkpoint_every=1",
        "--eval.every=0",
        "--eval.final_samples=1",
        "--eval.num_problems=5",
    ]
    whole = run_recipe(load_recipe(str(recipe), words), module / "whole").folder
    with pytest.raises(RuntimeError, match="stopped"):
        run_recipe(load_recipe(str(recipe), words), module / "run", display=Stopped())
    moved = tmp_path_factory.mktemp("moved")
    for file in (*module.glob("*.py"), *module.glob("*.toml")):
        shutil.copy(file, moved)
    sys.modules.pop("own_objectives")
    result = run_recipe(load_recipe(str(moved / recipe.name), words), module / "run")
    assert result.status == "finished"
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, result.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [line["step"] for line in small.metrics(result.folder)][-2:] == [1, 2]


BROKEN = {
    "advantages_belong_to_completions": {"advantages": lambda self, rewards: rewards},
    "loss_is_finite_and_has_a_gradient": {"terms": lambda self, new, tokens: Terms(sums(tokens, new.detach()))},
    "micro_batches_add_up": {"terms": lambda self, new, tokens: Terms(sums(tokens, new) / len(tokens.num_tokens or 1))},
    "order_does_not_matter": {
        "terms": lambda self, new, tokens: Terms(sums(tokens, new) * torch.arange(len(tokens.num_tokens)))
    },
    "dropped_groups_have_no_gradient": {"terms": lambda self, new, tokens: Terms(sums(tokens, new))},
    "broken_numbers_are_not_hidden": {"loss": lambda self, new, *rest: Objective.loss(self, new.nan_to_num(), *rest)},
    "inputs_stay_unchanged": {
        "terms": lambda self, new, tokens: Terms(tokens.advantage.mul_(2) * sums(tokens, new - tokens.logp_old))
    },
}


def sums(tokens, values):
    return torch.zeros(len(tokens.num_tokens), dtype=values.dtype).index_add(0, tokens.sequence, values)


@pytest.mark.parametrize("check", BROKEN)
def test_each_promise_is_told_from_the_others(check):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sound(Objective):
        def advantages(self, rewards):
            return rewards - rewards.mean()

        def terms(self, logp_new, tokens):
            return Terms(-tokens.advantage * sums(tokens, logp_new))

        def can_drop_zero_advantage_groups(self, first_update):
            return True

    assert set(failures(Sound()).values()) == {""}
    broken = type("Broken", (Sound,), BROKEN[check])
    assert failures(broken())[check]


def test_code_that_raises_fails_the_check_that_met_it():
    class Raises(Objective):
        def advantages(self, rewards):
            raise ZeroDivisionError("no rewards")

        def terms(self, logp_new, tokens):
            return Terms(-tokens.advantage * sums(tokens, logp_new))

        def can_drop_zero_advantage_groups(self, first_update):
            return True

    found = failures(Raises())
    assert found["advantages_belong_to_completions"] == "it raises ZeroDivisionError: no rewards"
    assert found["micro_batches_add_up"] == ""
