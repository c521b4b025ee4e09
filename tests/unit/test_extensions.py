"""Parts of every kind from a user's module, from an installed package and as a class: named, recorded, run, resumed."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import heliostat
from heliostat.config import ConfigError, Recipe, RolloutSection, TrackingSection, build_recipe, load_recipe
from heliostat.extensions import importable_name, source_of, with_parts
from heliostat.named_imports import KINDS, find, path_of
from heliostat.objectives import OBJECTIVES
from heliostat.optim.registry import REGISTRY
from heliostat.rollout import ENGINES, engine_builder
from heliostat.tasks import VerifierPool
from heliostat.tasks.environments.building import describe
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.environments.shipped import SHIPPED
from heliostat.tasks.settings import build_verifiers
from heliostat.tasks.verifiers.builtin import VERIFIERS
from heliostat.trackers import TRACKERS, open_services
from heliostat.train import Display, run_recipe
from heliostat.train.judges.opening import JUDGES
from tests.support import own_judges, own_parts, small
from tests.support.forks import in_child
from tests.support.tasks import additions, make_task

BUILTIN = {
    "objective": OBJECTIVES,
    "optimizer": REGISTRY,
    "engine": ENGINES,
    "tracker": TRACKERS,
    "verifier": VERIFIERS,
    "environment": SHIPPED,
    "judge": JUDGES,
}
POINTS = {
    "objective": ("pull", "own_parts:Pull"),
    "optimizer": ("sign", "own_parts:Sign"),
    "engine": ("own-plain", "own_parts:Plain"),
    "tracker": ("lines", "own_parts:Lines"),
    "verifier": ("digits", "own_judges:digits"),
    "environment": ("echo", "own_judges:Echo"),
    "judge": ("length", "own_parts:Length"),
}
"""Entry point and value by kind."""
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder with the modules of a user, which nothing imports from yet."""
    folder = tmp_path / "own parts"
    folder.mkdir()
    for module in (own_parts, own_judges):
        shutil.copy(module.__file__, folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("own_parts", "own_judges"):
        sys.modules.pop(name, None)


def install(folder, points, name="own-parts", version="1.2"):
    """Write the metadata of a distribution that declares the entry points, and let imports find it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = "".join(f"[{KINDS[kind].group}]\n{point} = {value}\n" for kind, (point, value) in points.items())
    (info / "entry_points.txt").write_text(groups)
    sys.path.insert(0, str(folder))


@each_kind
def test_an_installed_package_offers_a_part_of_every_kind(kind, modules):
    install(modules, POINTS)
    name, path = POINTS[kind]
    assert path_of(kind, name, BUILTIN[kind]) == path
    assert find(kind, name, BUILTIN[kind]).__name__ == path.partition(":")[2]
    assert source_of(kind, name) == f"own-parts 1.2 ({path})"
    assert source_of(kind, next(iter(BUILTIN[kind]))) == ""


@each_kind
def test_a_declared_name_that_is_shipped_is_refused(kind, modules):
    taken = next(iter(BUILTIN[kind]))
    install(modules, {kind: (taken, POINTS[kind][1])})
    with pytest.raises(ConfigError, match=f"'{taken}' is a shipped name, and the package own-parts declares it") as one:
        find(kind, taken, BUILTIN[kind])
    assert f"name its {kind} as '{POINTS[kind][1]}'" in str(one.value)


@each_kind
def test_without_the_package_a_name_is_refused_with_the_way_out(kind):
    with pytest.raises(ConfigError, match=f"unknown {kind} '{POINTS[kind][0]}'.*install the package that declares it"):
        find(kind, POINTS[kind][0], BUILTIN[kind])


def test_verifiers_and_environments_of_a_package_answer_in_their_processes(modules):
    install(modules, POINTS)
    verifiers = build_verifiers([{"name": "digits"}])
    with VerifierPool([make_task(*verifiers)]) as pool:
        (verdict,) = pool.judge(additions(1)[0], ["1a"]).result()
    assert verdict.scores == {"digits": 0.5}
    with EnvironmentPool(describe("echo", num_workers=1)) as pool:
        episode = pool.open({"prompt": ""}, seed=0)
        assert episode.first.result() == "Say yes."
        assert episode.step("yes").result().reward == 1.0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"engine": "own_parts:Lines"}, "is no engine: it lacks sample, take_counts, clone_for, stop"),
        ({"engine_settings": {"rows": 3}, "engine": "own_parts:Plain"}, "unexpected keyword argument 'rows'"),
        ({"engine_settings": {"rows": 3}}, "only used with an engine of your own"),
        ({"engine": "own_parts:Plian"}, r"no function 'Plian' .did you mean 'Plain'.*rollout.import_from"),
    ],
)
def test_engines_that_cannot_be_built_are_refused_without_a_model(modules, section, message):
    with pytest.raises(ConfigError, match=message):
        engine_builder(RolloutSection(import_from=str(modules), **section))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"trackers": ["own_parts:Plain"]}, "is no tracker: it lacks log, rewind, close"),
        ({"trackers": ["own_parts:Lines"] * 2}, "names the tracker 'own_parts:Lines' twice"),
        ({"tracker_settings": {"lines": {}}}, "a table for 'lines', which no tracker is named"),
        ({"trackers": ["own_parts:Lines"], "tracker_settings": {"own_parts:Lines": {"x": 1}}}, "unexpected.*'x'"),
    ],
)
def test_trackers_that_cannot_be_opened_are_refused(modules, section, message):
    with pytest.raises(ConfigError, match=message):
        open_services(TrackingSection(import_from=str(modules), **section), modules, {}, print)


def test_a_tracker_of_the_users_gets_every_row_and_its_settings(modules):
    section = {"trackers": ["own_parts:Lines"], "tracker_settings": {"own_parts:Lines": {"file": "mine.jsonl"}}}
    (tracker,) = open_services(TrackingSection(import_from=str(modules), **section), modules, {}, print)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert json.loads((modules / "mine.jsonl").read_text()) == {"step": 1, "reward/mean": 0.5}


# -- classes themselves ------------------------------------------------------------------------------------------------


def test_a_class_is_named_by_its_module_and_folder():
    assert importable_name(own_parts.Pull, "objective") == (
        "tests.support.own_parts:Pull",
        str(Path(__file__).parents[2]),
    )
    assert importable_name(torch.optim.SGD, "optimizer") == ("torch.optim.sgd:SGD", "")


def test_what_no_other_process_can_import_is_refused_with_the_way_out():
    class Local(own_parts.Pull):
        pass

    with pytest.raises(ConfigError, match=r"put it at the top level of a module.*objective=my_module.Local"):
        importable_name(Local, "objective")
    with pytest.raises(ConfigError, match=r"is an object; give its class, objective=Pull, and its settings as over"):
        importable_name(own_parts.Pull(), "objective")


def test_a_given_part_replaces_the_recipes_with_its_settings_and_a_tracker_is_added():
    given = {"objective.tau": 0.2, "optimizer.lr": 0.5, "optimizer.eps": 1e-4, "tracking.trackers": ["a:B"]}
    recipe = build_recipe({}, given)
    parts = {"objective": own_parts.Pull, "optimizer": "sgd", "engine": None, "tracker": own_parts.Lines}
    changed = Recipe.model_validate(with_parts(recipe.model_dump(mode="json"), parts))
    assert changed.objective.settings == changed.optimizer.settings == {}
    assert (changed.optimizer.name, changed.optimizer.lr) == ("sgd", 0.5)
    assert changed.tracking.trackers == ("a:B", "tests.support.own_parts:Lines")
    assert changed.rollout == recipe.rollout


# -- whole runs --------------------------------------------------------------------------------------------------------

FEW = {
    **{"train.num_steps": 3, "train.updates_per_step": 1, "train.checkpoint_every": 1, "train.try_export": False},
    **{"warm_start.num_steps": 0, "eval.every": 0, "eval.final_samples": 1, "eval.num_problems": 4},
    **{"rollout.prompts_per_step": 4, "audit.enabled": False, "guard.panel_every": 0},
}
NAMES = {
    "objective.name": "own_parts:Pull",
    "optimizer.name": "own_parts:Sign",
    "rollout.engine": "own_parts:Plain",
    "tracking.trackers": ["own_parts:Lines"],
    "judge.name": "own_parts:Length",
}


class Killed(Display):
    """A display that kills the process after the run's second step."""

    def step(self, index, values):
        if "reward/mean" in values and index >= 2:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_with_own_parts_goes_on_to_the_same_weights_and_refuses_without_them(modules):
    path = small.write_recipe(modules)
    path.write_text(small.shaped(path.read_text()).replace('name = "pmd-mean"\ntau = 0.2', 'name = "pmd-mean"'))
    sys.path.insert(0, str(modules))
    import own_parts as own

    parts = {"objective": own.Pull, "optimizer": own.Sign, "engine": own.Plain, "tracker": own.Lines}
    judged = {"judge.name": NAMES["judge.name"], "judge.import_from": str(modules)}
    whole = heliostat.post_train(path, FEW | judged, modules / "whole", **parts).folder
    recipe = load_recipe(str(path), FEW | {"rollout.import_from": str(modules)} | NAMES)
    recipe = recipe.model_copy(
        update={
            name: getattr(recipe, name).model_copy(update={"import_from": str(modules)})
            for name in ("objective", "optimizer", "tracking", "judge")
        }
    )
    run = modules / "run"
    child = in_child(lambda: run_recipe(recipe, run, display=Killed()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (run / "summary.json").exists()

    with pytest.raises(ConfigError, match=r"optimizer.name: cannot import 'gone' for 'gone:Sign'"):
        run_recipe(load_recipe(str(run / "recipe.toml"), {"optimizer.name": "gone:Sign"}), run)
    (modules / "own_parts.py").write_text((modules / "own_parts.py").read_text() + "\n# another version\n")
    shown = Noted()
    assert run_recipe(load_recipe(str(run / "recipe.toml")), run, display=shown).status == "finished"
    assert any("optimizer 'own_parts:Sign' has changed since this run began" in note for note in shown.notes)

    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [json.loads(line)["step"] for line in (whole / "own.jsonl").read_text().splitlines()] == [1, 2, 3]
    recorded = json.loads((whole / "versions.json").read_text())
    assert all(recorded[f"{kind} '{NAMES[KINDS[kind].setting]}'"].startswith("own_parts.py, sha256 ")
               for kind in ("objective", "optimizer", "engine", "judge"))  # fmt: skip
    assert json.loads((run / "summary.json").read_text())["sampled_with"] == own.Plain.way


class Noted(Display):
    """A display that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)
