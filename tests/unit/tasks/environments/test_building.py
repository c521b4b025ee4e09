"""Names become environments, and what cannot work is refused in one sentence before a process starts."""

import subprocess
import sys
import textwrap

import pytest

from heliostat.config import ConfigError
from heliostat.tasks.environments.building import build, check, describe
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.shipped import SHIPPED
from tests.support.environment_classes import Counter, TRLSafe, add

MODULE = "tests.support.environment_classes"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_names(name):
    environment = build(check(EnvironmentSpec(name)))()
    assert type(environment).__name__.lower() == name.replace("-", "") or name == "python"
    row = environment.problem(3)
    assert row["seed"] == 3
    environment.reset(row, 3)
    assert environment.oracle()
    environment.close()


def test_settings_reach_the_class_with_their_declared_types():
    spec = check(EnvironmentSpec(f"{MODULE}:Counter", settings={"target": 2, "step_size": 2}))
    assert spec.settings == {"target": 2, "step_size": 2.0}
    environment = build(spec)()
    assert environment.reset({}, 0) == "count to 2"
    assert environment.step("1").done


def test_every_instance_is_its_own():
    make = build(EnvironmentSpec(f"{MODULE}:Counter"))
    first, second = make(), make()
    first.reset({}, 0)
    second.reset({}, 0)
    first.step("2")
    assert second.sum == 0


def test_tools_alone():
    spec = check(EnvironmentSpec(tools=(f"{MODULE}:add",), settings={"calls": "python"}))
    environment = build(spec)()
    assert environment.step("add(1)").observation[0]["content"] == "2"
    assert environment.step('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>').done


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EnvironmentSpec(), "environment: an environment needs a name, or tools"),
        (EnvironmentSpec("lokup"), r"unknown environment 'lokup'; there are: .*\(did you mean 'lookup'\?\)"),
        (EnvironmentSpec("no_module:X"), "cannot import 'no_module' for 'no_module:X': ModuleNotFoundError"),
        (EnvironmentSpec(f"{MODULE}:Missing"), "has no function 'Missing'"),
        (EnvironmentSpec(f"{MODULE}:NoEnvironment"), "environment: 'NoEnvironment' is no environment: it needs"),
        (EnvironmentSpec("lookup", settings={"num_key": 3}), r"unknown key environment.num_key \(did you mean 'envi"),
        (EnvironmentSpec("lookup", settings={"max_turn": 3}), r"max_turn \(did you mean 'environment.max_turns'\?\)"),
        (
            EnvironmentSpec("lookup", settings={"calls": "json"}),
            "unknown key environment.calls.*; lookup takes: blind, explain, num_hops, num_keys",
        ),
        (EnvironmentSpec("lookup", settings={"num_keys": "x"}), 'environment.num_keys = "x": must be a whole number'),
        (EnvironmentSpec("lookup", settings={"num_keys": 200}), "num_hops = 1, num_keys = 200: need 1 <= num_hops"),
        (EnvironmentSpec("database", settings={"kinds": ["join"]}), "kinds = \\['join'\\]: must be among cell, count"),
        (EnvironmentSpec(f"{MODULE}:TRLSafe", settings={"calls": "xml"}), "calls = 'xml': must be one of auto, json"),
        (
            EnvironmentSpec(f"{MODULE}:SkyRLEcho", settings={"extras": {}}),
            "unknown key environment.extras.*; .* takes: bonus, env_config",
        ),
        (EnvironmentSpec(tools=(f"{MODULE}:add", f"{MODULE}:add")), "two tools are called 'add'"),
        (EnvironmentSpec(tools=("math:hypot",)), "environment: tool 'hypot' has no signature; call it in a function"),
        (EnvironmentSpec("openenv+localhost:8000"), "url = 'localhost:8000': must begin with http:// or https://"),
        (EnvironmentSpec("openenv+http://h", settings={"ur": 1}), "unknown key environment.ur.*; .* takes: action_fie"),
        (
            EnvironmentSpec("gymnasium/CartPol-v1"),
            r"no environment 'CartPol-v1' \(did you mean 'gymnasium/CartPole-v1'",
        ),
    ],
)
def test_refusals(spec, message):
    if spec.name.startswith("gymnasium/"):
        pytest.importorskip("gymnasium")
    with pytest.raises(ConfigError, match=message) as caught:
        check(spec)
    assert "\n" not in str(caught.value)


def needs(key: str) -> Counter:
    return Counter(len(key))


def test_a_setting_that_the_class_needs_is_missing():
    with pytest.raises(ConfigError, match=f"environment.key is missing: {__name__}:needs needs it"):
        check(EnvironmentSpec(f"{__name__}:needs"))
    assert build(check(EnvironmentSpec(f"{__name__}:needs", settings={"key": "abc"})))().target == 3


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ConfigError, match=r"'textarena/FrozenLake-v0' needs textarena .*: pip install textarena"):
        check(EnvironmentSpec("textarena/FrozenLake-v0"))


def test_classes_and_functions_themselves():
    spec = check(describe(TRLSafe, [add], {"length": 4}, num_workers=2))
    assert (spec.name, spec.tools, spec.num_workers) == (f"{MODULE}:TRLSafe", (f"{MODULE}:add",), 2)
    environment = build(spec)()
    assert environment.reset({"answer": "1"}, 0) == "The code has 4 digits."
    with pytest.raises(ValueError, match="3 is no environment: give a name, a class or a function"):
        describe(3)


def test_names_stay_names():
    assert describe("lookup", [f"{MODULE}:add"]) == EnvironmentSpec("lookup", (f"{MODULE}:add",))


SCRIPT = """
import pickle, subprocess, sys
from heliostat.tasks.environments.building import check, describe
from heliostat.tasks.environments.contract import Environment, Step

OFFSET = 40

class Adder(Environment):
    def __init__(self, more: int = 0):
        self.more = more

    def reset(self, problem, seed):
        return "?"

    def step(self, action):
        return Step(str(int(action) + OFFSET + self.more), done=True)

def twice(text: str) -> str:
    '''Say twice.

    Args:
        text: A text.
    '''
    return text * 2

CHILD = '''
import pickle, sys
from heliostat.tasks.environments.building import build
environment = build(pickle.load(sys.stdin.buffer))()
print(environment.step("2").observation, environment.step('twice("a")').observation[0]["content"])
'''
if __name__ == "__main__":
    for given, tools in ((Adder, [twice]), ("script:Adder", ["script:twice"])):
        content = pickle.dumps(check(describe(given, tools, {"more": 1})))
        print(subprocess.run([sys.executable, "-c", CHILD], input=content, capture_output=True, cwd="/", check=True))
"""


@pytest.mark.slow
def test_classes_of_a_running_script_travel_by_value(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("43 aa") == 2


@pytest.mark.slow
def test_an_environment_process_imports_nothing_heavy():
    code = """
import sys
from heliostat.tasks.environments.building import build
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.shipped import SHIPPED
for name in SHIPPED:
    build(EnvironmentSpec(name))()
build(EnvironmentSpec(tools=("helper:twice",)))
loaded = sys.modules.keys() & {"torch", "numpy", "pydantic", "transformers", "cloudpickle", "asyncio", "httpx2"}
assert not loaded, loaded
"""
    helper = "def twice(text: str) -> str:\n    '''Say twice.\n\n    Args:\n        text: A text.\n    '''\n"
    prelude = (
        f"import sys, types\nm = types.ModuleType('helper')\nexec({helper!r}, m.__dict__)\nsys.modules['helper'] = m"
    )
    subprocess.run([sys.executable, "-c", prelude + code], check=True)
