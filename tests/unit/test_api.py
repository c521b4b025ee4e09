"""The Python API: names that load on first use, recipes in any form, refusals before anything starts."""

import inspect
import pickle
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import heliostat
from heliostat import api
from heliostat.config import ConfigError, build_recipe, dump_recipe, load_recipe
from heliostat.rollout import SamplingSettings
from heliostat.tasks import VerifierError
from heliostat.train import RunResult


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Everything the API hands on, recorded instead of done; the run folder is ``tmp_path``."""
    recorded = []

    def record(name, result):
        def function(*args, **options):
            recorded.append(SimpleNamespace(name=name, args=args, options=options))
            return result

        monkeypatch.setattr(api, name, function)

    for name in ("run_recipe", "run_sft"):
        record(name, SimpleNamespace(folder=tmp_path, status="finished", is_main_process=True))
    for name in ("run_eval", "run_sample", "write_report"):
        record(name, name)
    return recorded


# -- names of the package ----------------------------------------------------------------------------------------------


def test_every_public_name_is_the_object_of_its_room():
    names = [name for name in heliostat.__all__ if name != "__version__"]
    assert names
    for name in names:
        home = import_module(getattr(heliostat, name).__module__)
        assert getattr(heliostat, name) is getattr(home, name)
        assert home.__name__.startswith("heliostat.")


def test_public_names_and_type_checked_names_are_the_same():
    """Type checkers read the imports under TYPE_CHECKING, interpreters the table: neither may know more."""
    source = inspect.getsource(heliostat)
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n\n")[0]
    typed = {name.strip() for line in block.splitlines() for name in line.partition(" import ")[2].split(",")}
    assert typed == set(heliostat.__all__) - {"__version__"} == set(heliostat._HOME)


def test_looking_at_the_package_shows_its_names():
    assert dir(heliostat) == sorted(heliostat.__all__)


def test_the_head_of_the_package_names_everything():
    assert [name for name in heliostat.__all__ if name not in heliostat.__doc__] == ["ConfigError", "__version__"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'heliostat' has no attribute 'trian'"):
        heliostat.trian  # noqa: B018
    assert not hasattr(heliostat, "nothing")


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert heliostat.__version__ == version("heliostat")


# -- recipes in any form -----------------------------------------------------------------------------------------------

CHANGES = {"objective.tau": 0.5, "train.num_steps": 3}


def test_a_recipe_may_be_a_name_a_path_or_an_object(calls, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(dump_recipe(load_recipe("demo")))
    wanted = load_recipe("demo", CHANGES)
    for given in ("demo", path, str(path), load_recipe("demo")):
        api.post_train(given, CHANGES)
    runs = [call.args for call in calls if call.name == "run_recipe"]
    assert runs == [(wanted, None, name) for name in ("demo", "mine", "mine", "recipe")]


def test_overrides_may_be_a_table_or_command_line_words(calls):
    for overrides in (CHANGES, ["--objective.tau", "0.5", "--train.num_steps=3"]):
        for recipe in ("demo", load_recipe("demo")):
            api.post_train(recipe, overrides)
    runs = [call.args[0] for call in calls if call.name == "run_recipe"]
    assert runs == [load_recipe("demo", CHANGES)] * 4


def test_a_recipe_object_keeps_every_setting(calls):
    """Rebuilding it must not lose what belongs to a named objective, optimizer, task or model."""
    recipe = build_recipe(
        {
            "model": {"path": "tiny", "settings": {"num_layers": 2}},
            "task": [
                {"name": "file", "path": "a.jsonl", "verifiers": [{"name": "exact"}]},
                {"name": "reasoning-gym/chain_sum", "settings": {"max_terms": 3}},
            ],
            "objective": {"name": "grpo", "clip_low": 0.1},
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "rollout": {"stop": ["\n", "]"]},
        }
    )
    for overrides in ({}, {"task.1.num_train": 7}):
        api.post_train(recipe, overrides)
    (same, changed), names = zip(*(call.args[::2] for call in calls if call.name == "run_recipe"), strict=True)
    assert (same, set(names)) == (recipe, {"recipe"})
    assert changed.task[1].num_train == 7
    assert changed.task[1].settings == {"settings": {"max_terms": 3}}
    assert changed.task[0] == recipe.task[0]


def test_the_run_folder_may_be_text_or_a_path(calls):
    for folder in ("runs/x", Path("runs/x")):
        api.post_train("demo", run_dir=folder)
        api.sft("demo", run_dir=folder)
    assert [Path(call.args[-2]) for call in calls if call.name != "write_report"] == [Path("runs/x")] * 4


# -- the verbs ---------------------------------------------------------------------------------------------------------


def test_training_writes_the_page_of_the_folder_it_trained_in(calls, tmp_path):
    result = api.post_train("demo", run_dir="elsewhere")
    assert result.folder == tmp_path
    api.sft("demo")
    assert [(call.name, call.args) for call in calls if call.name == "write_report"] == [
        ("write_report", ([tmp_path],))
    ] * 2


@pytest.mark.parametrize("start", [lambda: api.post_train("demo"), lambda: api.sft("demo")])
def test_a_run_that_failed_raises_with_its_reason_and_its_folder(calls, monkeypatch, tmp_path, start):
    ended = RunResult(tmp_path, "failed", "three steps in a row were not finite", None, None)
    monkeypatch.setattr(api, "run_recipe", lambda *args, **options: ended)
    monkeypatch.setattr(api, "run_sft", lambda *args, **options: ended)
    with pytest.raises(heliostat.RunFailed, match="three steps in a row were not finite") as caught:
        start()
    assert [call.name for call in calls] == ["write_report"], "it has its page all the same"
    for failed in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (failed.reason, failed.folder, failed.result) == (ended.reason, tmp_path, ended)
        assert str(tmp_path) in str(failed)


def test_a_run_that_was_interrupted_is_returned(calls, monkeypatch, tmp_path):
    ended = RunResult(tmp_path, "interrupted", "stopped by the user", None, None)
    monkeypatch.setattr(api, "run_recipe", lambda *args, **options: ended)
    assert api.post_train("demo") == ended


@pytest.mark.parametrize("verb", ["evaluate", "sample", "collect"])
def test_what_fails_without_a_run_raises_the_same(calls, monkeypatch, tmp_path, verb):
    def fail(*args, **options):
        raise VerifierError("no worker can be started")

    for name in ("api.run_eval", "api.run_sample", "train.data.collect.run_collect"):
        monkeypatch.setattr(f"heliostat.{name}", fail)
    more = [tmp_path / "a.bank"] if verb == "collect" else []
    with pytest.raises(heliostat.RunFailed, match="no worker can be started") as caught:
        getattr(api, verb)("tiny", "demo", *more)
    assert (caught.value.folder, caught.value.result) == (None, None)


def test_a_function_of_the_program_is_audited_before_any_run():
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(3) for b in range(7)]

    def contains(completions, answer, **columns):
        return [float(right in text) for text, right in zip(completions, answer, strict=True)]

    [careless] = api.audit(data=rows, rewards=[contains])
    [sound] = api.audit(data=rows, rewards=["numeric"])
    assert (careless.hackable, sound.hackable) == (True, False)
    assert careless.num_oracles == len(rows)


def test_sft_takes_rows_of_a_file(calls, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    api.sft("demo", rows, {"warm_start.num_steps": 2})
    assert calls[0].args == (load_recipe("demo", {"warm_start.num_steps": 2}), rows, None, "demo")


def test_one_model_is_a_list_of_one(calls):
    settings = SamplingSettings(temperature=0.5)
    assert api.evaluate("tiny", "demo", num_problems=3, num_samples=2, greedy=False, settings=settings) == "run_eval"
    api.evaluate(["tiny", "other"], "demo", {"run.seed": 1})
    one, two = calls
    assert one.args == (["tiny"], load_recipe("demo"))
    assert one.options == {"num_problems": 3, "num_samples": 2, "greedy": False, "settings": settings}
    assert two.args == (["tiny", "other"], load_recipe("demo", {"run.seed": 1}))


def test_sampling_a_prompt_needs_no_recipe(calls):
    assert api.sample("tiny", prompt="1 + 1 =", num_samples=2) == "run_sample"
    api.sample("tiny", overrides={"rollout.max_new_tokens": 3}, prompt="1 + 1 =")
    assert calls[0].args == ("tiny", build_recipe())
    assert calls[0].options == {"prompt": "1 + 1 =", "num_samples": 2, "settings": None}
    assert calls[1].args == ("tiny", build_recipe({"rollout.max_new_tokens": 3}))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: api.post_train("dmo"), ConfigError, "did you mean 'demo'"),
        (lambda: api.post_train("demo", {"objective.name": 3}), ConfigError, "objective.name = 3: must be text"),
        (lambda: api.post_train("demo", {"train.num_step": 3}), ConfigError, "did you mean 'train.num_steps'"),
        (lambda: api.post_train("demo", "--train.num_steps 3"), ConfigError, "not the string"),
        (lambda: api.post_train(load_recipe("demo"), {"optimizer.lr": -1}), ConfigError, "must be greater than 0"),
        (lambda: api.sft("demo", "absent.jsonl"), FileNotFoundError, "there is no data file absent.jsonl"),
        (lambda: api.evaluate([], "demo"), ValueError, "takes one model, or two to compare, not 0"),
        (lambda: api.evaluate(["a", "b", "c"], "demo"), ValueError, "not 3"),
        (lambda: api.audit("agent"), ConfigError, "audit_environment"),
        (lambda: api.sample("tiny"), ValueError, "needs a prompt, or a recipe"),
        (lambda: api.sample("tiny", "dmo"), ConfigError, "did you mean 'demo'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(calls, call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert calls == []
