"""Recipes by name and path: extending, overriding, refusing, and writing what is read back equal."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from heliostat.config import (
    ConfigError,
    Recipe,
    TaskSection,
    build_recipe,
    describe_keys,
    dump_recipe,
    load_recipe,
    recipe_names,
    recipe_text,
)


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return _write


def reload(recipe: Recipe, folder: Path) -> Recipe:
    path = folder / "resolved.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(str(path))


# -- shipped recipes ---------------------------------------------------------------------------------------------------


def test_the_promised_recipes_are_shipped():
    assert {"agent", "demo", "minimal", "smollm2-agent", "smollm2-arithmetic"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_loads_explains_itself_and_survives_writing(name, tmp_path):
    assert recipe_text(name).startswith("# "), "the first line says what the recipe does"
    recipe = load_recipe(name)
    assert reload(recipe, tmp_path) == recipe


def test_shipped_recipe_states_only_what_the_file_says():
    said = tomllib.loads(recipe_text("demo"))
    recipe = load_recipe("demo").model_dump()
    for section, table in said.items():
        resolved = recipe[section][0] if section == "task" else recipe[section]
        assert {key: resolved[key] for key in table} == table
    assert recipe["tracking"] == Recipe().tracking.model_dump()


# -- extends -----------------------------------------------------------------------------------------------------------


def test_extends_a_shipped_recipe_and_keeps_what_it_does_not_mention(write):
    path = write("mine.toml", 'extends = "demo"\n[train]\nnum_steps = 7\n')
    base, mine = load_recipe("demo").model_dump(), load_recipe(path).model_dump()
    assert mine.pop("train") == base.pop("train") | {"num_steps": 7}
    assert mine == base


def test_extends_is_relative_to_the_file_and_chains(write, tmp_path, monkeypatch):
    write("base/a.toml", "[train]\nnum_steps = 3\n[rollout]\ngroup_size = 4\n")
    write("base/b.toml", 'extends = "a.toml"\n[train]\nupdates_per_step = 2\n')
    path = write("c.toml", 'extends = "base/b.toml"\n[rollout]\ngroup_size = 6\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(path)
    assert (recipe.train.num_steps, recipe.train.updates_per_step, recipe.rollout.group_size) == (3, 2, 6)


def test_extends_in_a_circle_is_refused(write):
    write("a.toml", 'extends = "b.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(write("b.toml", 'extends = "a.toml"\n'))


@pytest.mark.parametrize(
    ("value", "message"), [("3", "name or path of one recipe"), ('"dmo"', r"did you mean 'demo'\?")]
)
def test_wrong_extends_is_refused(write, value, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write("a.toml", f"extends = {value}\n"))


# -- what happens to the keys of a thing that is replaced --------------------------------------------------------------


def test_naming_another_objective_forgets_the_old_ones_settings(write):
    base = {"objective.name": "pmd-mean", "objective.tau": 0.2}
    path = write("a.toml", tomli_w.dumps({"objective": {"name": "pmd-mean", "tau": 0.2}}))
    assert load_recipe(path, ["--objective.name", "grpo"]).objective.settings == {}
    assert load_recipe(path, ["--objective.name", "grpo", "--objective.eps=0.1"]).objective.settings == {"eps": 0.1}
    assert load_recipe(path, ["--objective.name", "pmd-mean"]).objective.settings == {"tau": 0.2}
    assert load_recipe(path, {"objective.beta": 1}).objective.settings == {"tau": 0.2, "beta": 1}
    assert build_recipe(base).objective.settings == {"tau": 0.2}


def test_the_default_name_counts_as_the_old_name(write):
    path = write("a.toml", "[objective]\ntau = 0.2\n")
    assert load_recipe(path, ["--objective.name", "grpo"]).objective.settings == {}
    assert load_recipe(path, ["--objective.name", "pmd-mean"]).objective.settings == {"tau": 0.2}


def test_naming_another_optimizer_keeps_the_learning_rate(write):
    path = write("a.toml", "[optimizer]\nlr = 0.5\nbetas = [0.9, 0.99]\n")
    section = load_recipe(path, ["--optimizer.name", "sgd"]).optimizer
    assert (section.name, section.lr, section.settings) == ("sgd", 0.5, {})


def test_choosing_another_model_forgets_the_tiny_models_shape(write):
    path = write("a.toml", '[model]\npath = "tiny"\nchat = true\nsettings = {num_layers = 2}\n')
    section = load_recipe(path, ["--model.path", "smollm2-135m"]).model
    assert (section.settings, section.chat) == ({}, True)
    assert load_recipe(path, ["--model.settings.hidden_size=64"]).model.settings == {"num_layers": 2, "hidden_size": 64}


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_one_task_table_and_a_list_of_one_are_the_same(write):
    table = write("a.toml", '[task]\nname = "file"\npath = "x.jsonl"\n')
    array = write("b.toml", '[[task]]\nname = "file"\npath = "x.jsonl"\n')
    assert load_recipe(table) == load_recipe(array) == build_recipe({"task": {"name": "file", "path": Path("x.jsonl")}})
    assert Recipe(task=TaskSection(name="file", path="x.jsonl")) == load_recipe(table)


def test_task_overrides_reach_the_first_task_or_the_numbered_one(write):
    path = write("a.toml", '[[task]]\nname = "file"\npath = "x.jsonl"\n[[task]]\nname = "reasoning-gym/gcd"\n')
    recipe = load_recipe(path, ["--task.num_train=5", "--task.1.num_train", "6", "--task.1.settings.max_terms", "3"])
    assert [task.num_train for task in recipe.task] == [5, 6]
    assert [task.settings for task in recipe.task] == [{"path": "x.jsonl"}, {"settings": {"max_terms": 3}}]
    grown = load_recipe(path, ["--task.2.name", "reasoning-gym/lcm"])
    assert [task.name for task in grown.task] == ["file", "reasoning-gym/gcd", "reasoning-gym/lcm"]
    with pytest.raises(ConfigError, match=r"task.3 skips task.2"):
        load_recipe(path, ["--task.3.name", "x"])


def test_an_extending_task_table_changes_the_first_task_and_a_list_replaces_all(write):
    write("base.toml", '[[task]]\nname = "file"\npath = "x"\n[[task]]\nname = "reasoning-gym/gcd"\n')
    table = load_recipe(write("a.toml", 'extends = "base.toml"\n[task]\nnum_train = 9\n'))
    assert [(task.name, task.num_train) for task in table.task] == [("file", 9), ("reasoning-gym/gcd", 2048)]
    array = load_recipe(write("b.toml", 'extends = "base.toml"\n[[task]]\nname = "reasoning-gym/lcm"\n'))
    assert [task.name for task in array.task] == ["reasoning-gym/lcm"]


# -- refusals: one line, naming the key and the way out ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "line"),
    [
        ({"optimizer.lr": -1}, "optimizer.lr = -1: must be greater than 0"),
        ({"rollout.top_p": 2}, "rollout.top_p = 2: must be at most 1"),
        ({"rollout.group_size": 0}, "rollout.group_size = 0: must be at least 1"),
        ({"rollout.group_size": True}, "rollout.group_size = true: must be a whole number"),
        ({"rollout.group_size": 2.5}, "rollout.group_size = 2.5: must be a whole number"),
        ({"rollout.temperature": "hot"}, 'rollout.temperature = "hot": must be a number'),
        ({"optimizer.lr": float("inf")}, "optimizer.lr = inf: must be a finite number"),
        ({"optimizer.lr": float("nan")}, "optimizer.lr = nan: must be a finite number"),
        ({"run.deterministic": 1}, "run.deterministic = 1: must be true or false"),
        ({"run.name": 3}, "run.name = 3: must be text"),
        ({"rollout.stop": "x"}, 'rollout.stop = "x": must be a list'),
        ({"rollout.stop": ["a", 1]}, "rollout.stop.1 = 1: must be text"),
        ({"rollout": 3}, "rollout = 3: must be a table"),
        ({"rollout.temperature.x": 3}, 'rollout.temperature = {"x": 3}: must be a number'),
        ({"model.chat": "maybe"}, "model.chat = \"maybe\": must be true or false or 'auto'"),
        (
            {"model.dtype": "float23"},
            "model.dtype = \"float23\": must be 'auto', 'float32' or 'bfloat16' (did you mean 'float32'?)",
        ),
        ({"task": []}, "task = []: must be a list of at least 1"),
        ({"task.num_train": 0}, "task.num_train = 0: must be at least 1"),
        ({"task": [{}, {"num_train": 0}]}, "task.1.num_train = 0: must be at least 1"),
        ({"run.name": None}, "run.name = None: a recipe has no empty values; leave the key out to get its default"),
        ({"rollout.temprature": 1}, "unknown key rollout.temprature (did you mean 'rollout.temperature'?)"),
        ({"rolout.temperature": 1}, "unknown key rolout.temperature (did you mean 'rollout.temperature'?)"),
        ({"rollout.lr": 1}, "unknown key rollout.lr (did you mean 'optimizer.lr'?)"),
        ({"tracking": {"wandbb": "x"}}, "unknown key tracking.wandbb (did you mean 'tracking.wandb'?)"),
    ],
)
def test_wrong_setting_gets_one_plain_line(settings_, line):
    with pytest.raises(ConfigError) as caught:
        build_recipe(settings_)
    assert str(caught.value) == line


def test_a_key_like_no_other_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"unknown key train.zzzzzz; train takes: num_steps, "):
        build_recipe({"train.zzzzzz": 1})
    with pytest.raises(ConfigError, match=r"unknown key zzzzzz; the sections are: run, model, "):
        build_recipe({"zzzzzz": 1})


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match=r"^train.updates_per_step = 3 needs .* rollout.prompts_per_step \(now 2\)"):
        build_recipe({"train.updates_per_step": 3, "rollout.prompts_per_step": 2})
    for truncation in ({"rollout.top_p": 0.9}, {"rollout.top_k": 5}):
        with pytest.raises(ConfigError, match=r"^rollout.top_p and rollout.top_k truncate the policy"):
            build_recipe(truncation)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown recipe 'demmo' \(did you mean 'demo'\?\); shipped: agent, demo, "):
        load_recipe("demmo")
    with pytest.raises(ConfigError, match=r"^there is no recipe file nowhere/x.toml$"):
        load_recipe("nowhere/x.toml")


def test_broken_files_are_named(write, tmp_path):
    with pytest.raises(ConfigError, match=r"a.toml is not valid TOML: .*line 2"):
        load_recipe(write("a.toml", "[train]\nnum_steps = = 3\n"))
    with pytest.raises(ConfigError, match=r"a.toml: unknown key train.num_step "):
        load_recipe(write("a.toml", "[train]\nnum_step = 3\n"))
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot read recipe file .*b.toml"):
        load_recipe(str(tmp_path / "b.toml"))
    (tmp_path / "c.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read recipe file .*c.toml"):
        load_recipe(str(tmp_path / "c.toml"))


def test_overrides_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="'demo' is not an override"):
        load_recipe("demo", ["demo"])
    with pytest.raises(ConfigError, match="not the string"):
        load_recipe("demo", "--train.num_steps=3")


# -- property: any valid override arrives, and the result survives being written ---------------------------------------

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_FREE = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Valid values of one key by its JSON schema, which is pydantic's own account of the recipe."""
    if "anyOf" in schema:
        return st.one_of([_values(member) for member in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    low, above = schema.get("minimum", schema.get("exclusiveMinimum")), "exclusiveMinimum" in schema
    return {
        "boolean": st.booleans(),
        "integer": st.integers(low, 10**6),
        "number": st.floats(low, schema.get("maximum", 1e9), exclude_min=above, allow_nan=False),
        "string": _TEXT,
        "array": st.lists(_TEXT, max_size=3),
        "object": st.dictionaries(_TEXT, _FREE, max_size=3),
    }[schema["type"]]


def _key_strategies() -> dict[str, st.SearchStrategy[Any]]:
    schema = Recipe.model_json_schema()
    strategies = {}
    for section, spec in schema["properties"].items():
        reference = spec.get("items", spec).get("$ref") or spec["allOf"][0]["$ref"]
        for key, part in schema["$defs"][reference.rpartition("/")[2]]["properties"].items():
            strategies[f"{section}.{key}"] = _values(part)
    return strategies


_KEYS = _key_strategies()
_EXTRA_KEYS = [f"{section}.{key}" for section in ("objective", "optimizer", "task") for key in ("tau", "a.b", "c-d")]
_SERVER_KEYS = {f"rollout.{key}" for key in ("engine", "server_url", "sync_dir", "sync", "sleep_level")} | {
    f"rollout.server_{key}" for key in ("timeout_s", "retries", "requests")
}
"""Valid together only; ``tests/unit/rollout/server/test_engine.py`` tries their combinations."""
_TEACHER_KEYS = {key for key in _KEYS if key.startswith(("teacher.", "judge."))}
"""Likewise; ``tests/promises/test_distillation.py`` and ``test_judges.py`` do."""
_OVERRIDES = st.lists(
    st.sampled_from(sorted(set(_KEYS) - _SERVER_KEYS - _TEACHER_KEYS)).flatmap(
        lambda key: st.tuples(st.just(key), _KEYS[key])
    )
    | st.tuples(st.sampled_from(_EXTRA_KEYS), _FREE),
    max_size=6,
    unique_by=lambda pair: pair[0],
)


def _as_argument(value: Any, raw: bool) -> str:
    """A value as it may be typed: TOML on one line, or a text as it is."""
    return value if raw and isinstance(value, str) and value[:1] not in ("'", '"') else _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")


def _look_up(recipe: Recipe, key: str) -> Any:
    node: Any = recipe.model_dump()
    node = node | {"task": node["task"][0]}
    for part in key.split("."):
        node = node[part]
    return list(node) if isinstance(node, tuple) else node


def test_strategies_cover_every_key():
    assert sorted(_KEYS) == sorted(key.name for key in describe_keys())


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(pairs=_OVERRIDES, raw=st.booleans(), mapping=st.booleans())
def test_valid_overrides_arrive_and_survive_writing(pairs, raw, mapping, tmp_path_factory):
    given_ = dict(pairs)
    assume("rollout.top_p" not in given_ and "rollout.top_k" not in given_)
    assume(given_.get("prefix.name", "none") == "none" or given_.get("traces.bank", ""))
    assume(given_.get("train.updates_per_step", 1) <= given_.get("rollout.prompts_per_step", 32))
    assume("distributed.compute_dtype" not in given_ or given_.get("distributed.placement") == "sharded")
    assume(given_.get("feedback.actuator") != "mix")  # needs a second task
    threads = given_.get("rollout.max_staleness", 0) and given_.get("rollout.num_workers", 1) > 1
    assume(not threads or given_.get("run.num_threads") == 1)
    assume(not given_.get("rollout.max_staleness", 0) or given_.get("guard.actuator") != "temperature")
    if mapping:
        recipe = build_recipe({}, given_)
    else:
        recipe = build_recipe({}, [f"--{key}={_as_argument(value, raw and key in _KEYS)}" for key, value in pairs])
    for key, value in given_.items():
        assert _look_up(recipe, key) == value
    assert reload(recipe, tmp_path_factory.getbasetemp()) == recipe
