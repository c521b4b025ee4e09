"""Studies, benchmarks and examples import what there is: they run for hours, and nothing else here runs them."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for folder in ("studies", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


def imported(name):
    """A module; the test is skipped where what it needs of others is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "heliostat":
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_taken_from_the_library_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "heliostat":
            module = imported(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or imported(f"{node.module}.{alias.name}"), alias.name
