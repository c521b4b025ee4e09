"""Objectives and optimizers of a user's module or of an installed package, found by the name in a recipe."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from heliostat.config import ConfigError, ObjectiveSection, OptimizerSection, load_recipe
from heliostat.named_imports import find
from heliostat.objectives import OBJECTIVES, build_objective
from heliostat.optim import optimizer_settings

OBJECTIVE = """
from dataclasses import dataclass
from heliostat.objectives import Objective, Terms

@dataclass(frozen=True, kw_only=True)
class {name}(Objective):
    tau: float = 0.5

    def advantages(self, rewards):
        return rewards - rewards.mean()

    def terms(self, logp_new, tokens):
        ratio = tokens.sum_by_sequence(logp_new - tokens.logp_old)
        return Terms((ratio - tokens.advantage / self.tau) ** 2)

    def can_drop_zero_advantage_groups(self, first_update):
        return first_update

class Unfinished(Objective):
    pass
"""
OPTIMIZER = """
from dataclasses import dataclass
from typing import ClassVar
import torch

@dataclass(frozen=True, kw_only=True)
class Plain:
    name: ClassVar[str] = "plain"
    weight_decay: float = 0.0
    momentum: float = 0.1

    def build(self, groups, lr):
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a space in its name; modules imported from it are forgotten afterwards."""
    made = tmp_path / "my parts"
    made.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        del sys.modules[name]


def objective(name, folder, **settings):
    return build_objective(ObjectiveSection(name=name, import_from=str(folder), **settings))


def test_a_module_in_the_recipes_folder_is_found_wherever_the_command_starts(folder, tmp_path, monkeypatch):
    (folder / "own_objectives.py").write_text(OBJECTIVE.format(name="Pull"))
    (folder / "own_optimizers.py").write_text(OPTIMIZER)
    (folder / "mine.toml").write_text(
        '[objective]\nname = "own_objectives:Pull"\ntau = 0.3\n[optimizer]\nname = "own_optimizers:Plain"\n'
        "momentum = 0.7\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(str(folder / "mine.toml"))
    built, settings = build_objective(recipe.objective), optimizer_settings(recipe.optimizer)
    assert (built.name, built.tau, settings.momentum) == ("Pull", 0.3, 0.7)
    assert recipe.objective.import_from == str(folder)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("own:Pul", {}, r"module 'own' has no function 'Pul' \(did you mean 'Pull'\?\); objective.import_from"),
        ("gone:Pull", {}, r"cannot import 'gone' for 'gone:Pull': ModuleNotFoundError.*; objective.import_from"),
        ("own:Unfinished", {}, "does not define advantages, can_drop_zero_advantage_groups, terms"),
        ("own:dataclass", {}, "'own:dataclass' is no subclass of heliostat.objectives.Objective"),
        ("own:Pull", {"tua": 1.0}, r"unknown key objective.tua \(did you mean 'objective.tau'\?\)"),
        ("own:Pull", {"tau": "high"}, "objective.tau"),
        ("broken:Pull", {}, r"ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
    ],
)
def test_refusals_name_the_thing_and_the_way_out_in_one_line(folder, name, settings, message):
    (folder / "own.py").write_text(OBJECTIVE.format(name="Pull"))
    (folder / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigError, match=message) as caught:
        objective(name, folder, **settings)
    assert "\n" not in str(caught.value)


def test_a_class_that_builds_no_optimizer_is_refused():
    with pytest.raises(ConfigError, match="is no dataclass of settings with build"):
        optimizer_settings(OptimizerSection(name="collections:OrderedDict"))


def package(folder, name, points):
    """Install a distribution's metadata with entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[heliostat.objectives]\n{lines}")


def test_an_installed_package_offers_its_objective_and_cannot_replace_a_built_in_one(folder, monkeypatch):
    (folder / "offered.py").write_text(OBJECTIVE.format(name="Sharp"))
    package(folder, "sharper", {"sharp": "offered:Sharp", "grpo": "offered:Sharp"})
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match=r"'grpo' is a shipped name, and the package sharper declares it.*offered:Sh"):
        find("objective", "grpo", OBJECTIVES)
    assert find("objective", "dapo", OBJECTIVES) is OBJECTIVES["dapo"]
    with pytest.raises(ConfigError, match=r"unknown objective 'sharpp' \(did you mean 'sharp'\?\)"):
        build_objective(ObjectiveSection(name="sharpp"))
    assert "offered" not in sys.modules, "a name that was not asked for is not imported"
    assert build_objective(ObjectiveSection(name="sharp", tau=0.1)).tau == 0.1
    package(folder, "other", {"sharp": "elsewhere:Sharp"})
    with pytest.raises(ConfigError, match=r"is declared by .* and .*; uninstall one"):
        build_objective(ObjectiveSection(name="sharp"))


def test_metadata_of_packages_is_read_once_and_again_when_something_was_installed(folder, monkeypatch):
    reads = []

    def read():
        reads.append(1)
        return entry_points()

    monkeypatch.setattr("heliostat.named_imports.entry_points", read)
    monkeypatch.syspath_prepend(str(folder))
    for _ in range(3):
        assert find("objective", "dapo", OBJECTIVES) is OBJECTIVES["dapo"]
    assert len(reads) == 1
    (folder / "offered.py").write_text(OBJECTIVE.format(name="Sharp"))
    package(folder, "sharper", {"sharp": "offered:Sharp"})
    assert build_objective(ObjectiveSection(name="sharp")).name == "Sharp"
    assert len(reads) == 2


def test_metadata_of_packages_is_not_read_for_a_module(folder, monkeypatch):
    def read():
        raise AssertionError("read")

    monkeypatch.setattr("heliostat.named_imports.entry_points", read)
    (folder / "quick.py").write_text(OBJECTIVE.format(name="Pull"))
    assert objective("quick:Pull", folder).name == "Pull"
    with pytest.raises(AssertionError, match="read"):
        objective("another", "")


def test_a_module_that_starts_a_run_is_refused_before_a_model_loads(folder):
    (folder / "trains.py").write_text("import heliostat\nheliostat.post_train('demo')\n")
    (folder / "mine.toml").write_text('[objective]\nname = "trains:Pull"\n[model]\npath = "no/such/model"\n')
    command = [sys.executable, "-m", "heliostat", "train", str(folder / "mine.toml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert "the module of 'trains:Pull' starts a run whenever it is imported" in done.stderr
    assert not (folder / "runs").exists()
