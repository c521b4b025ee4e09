"""The promise: ``import heliostat`` and everything that only looks around is light, seen from a fresh interpreter."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

HEAVY = [
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"),
    *("reasoning_gym", "math_verify", "sympy", "datasets", "pyarrow", "pandas"),
    *("scipy", "networkx", "matplotlib", "gguf", "tensorboard", "wandb", "trackio"),
    *("gymnasium", "stable_baselines3", "sb3_contrib"),
]

SCRIPT = """
import json, sys
{code}
json.dump(sorted({{name.partition(".")[0] for name in sys.modules}}), sys.stderr)
"""


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running ``code``."""
    command = [sys.executable, "-c", SCRIPT.format(code=code)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stderr))


def run_command(*argv: str) -> str:
    return f"""
from heliostat.cli import main
try:
    code = main({list(argv)})
except SystemExit as ended:
    code = ended.code
assert code in (None, 0), code
"""


def test_the_list_names_real_modules():
    """A misspelt name would never be found, and the promise would be empty."""
    assert "safetensors" in modules_after("import safetensors")
    assert {name for name in HEAVY if find_spec(name) is None} <= {"wandb", "trackio"}


@pytest.mark.parametrize(
    "module",
    [
        "heliostat",
        "heliostat.config",
        "heliostat.tracking",
        "heliostat.cli",
        "heliostat.control",
        "heliostat.report.page",
        "heliostat.report.diagnosis",
        "heliostat.scaling",
    ],
)
def test_importing_is_light(module):
    assert modules_after(f"import {module}") & set(HEAVY) == set()


def test_importing_the_package_loads_next_to_nothing():
    assert modules_after("import heliostat") & {"pydantic", "rich", "numpy"} == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["tasks", "audit", "--help"],
        ["recipes"],
        ["recipes", "demo"],
        ["metrics"],
        ["runs", "docs/examples"],
        ["scale", "qwen2.5-0.5b"],
        pytest.param(["completion", "bash"], marks=pytest.mark.skipif(not find_spec("shtab"), reason="no shtab")),
    ],
    ids=" ".join,
)
def test_looking_around_is_light(argv):
    assert modules_after(run_command(*argv)) & set(HEAVY) == set()


def test_help_loads_neither_the_recipe_nor_the_printer():
    assert modules_after(run_command("--help")) & {"pydantic", "rich", "numpy"} == set()


def test_refusals_are_light():
    code = """
import contextlib, io
from heliostat.cli import main
with contextlib.redirect_stderr(io.StringIO()):
    assert main(["train", "demo", "--optimizer.lr=-1"]) == 2
"""
    assert modules_after(code) & set(HEAVY) == set()
