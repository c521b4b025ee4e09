"""Studies, benchmarks and examples use public names of the library alone, so that private ones are free to change.

A use is an import, an attribute, or a string that names an attribute, of a private name that the library defines.
Private names of other packages, of a script's own classes and of its neighbours are their own affair.
"""

import ast
import functools
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from tests.promises.test_studies import ROOT, SCRIPTS

BY_STRING = {"getattr", "setattr", "hasattr", "delattr", "object"}  # patch.object


def private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.endswith("__")


def members(tree: ast.Module) -> set[str]:
    """Private names of attributes and methods of a module's classes."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {name for one in classes for node in one.body for name in bound(node)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and by_self(node)}
    return {name for name in names if private(name)}


def bound(node: ast.stmt) -> list[str]:
    """The names that a statement of a module or a class gives a value to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def by_self(node: ast.Attribute) -> bool:
    stored = isinstance(node.ctx, ast.Store)
    return stored and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


@functools.cache
def members_in(folder: Path) -> frozenset[str]:
    """Private names of members of all classes in a folder."""
    return frozenset(name for path in folder.rglob("*.py") for name in members(ast.parse(path.read_text())))


MEMBERS = members_in(ROOT / "src/heliostat")


def imports(tree: ast.AST) -> dict[str, str]:
    """The top-level package of every imported name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(one.asname or one.name).split(".")[0]: one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {one.asname or one.name: node.module.split(".")[0] for one in node.names}
    return found


def origin(node: ast.expr, packages: dict[str, str]) -> str | None:
    """The package from which a value is reached by names alone; ``None`` otherwise: a call's result may be anything."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return packages.get(node.id) if isinstance(node, ast.Name) else None


def of_library(name: str, value: ast.expr, packages: dict[str, str], own: set[str]) -> bool:
    """Whether a private name of a value is the library's."""
    package = origin(value, packages)
    if package == "heliostat":
        return private(name)
    return package is None and name in MEMBERS - own


def private_uses(text: str, neighbours: Set[str] = frozenset()) -> Iterator[str]:
    """Describe each use of a private name of the library.

    Args:
        neighbours: private names of members that other scripts of the folder define.
    """
    tree = ast.parse(text)
    packages, own = imports(tree), members(tree) | neighbours
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used = of_library(node.attr, node.value, packages, own)
        elif isinstance(node, ast.Call):
            used = any(of_library(name, node.args[0], packages, own) for name in names_of_attributes(node))
        elif isinstance(node, ast.ImportFrom | ast.Import | ast.Constant):
            used = any(private(part) for path in paths_of(node) for part in path.split("."))
        else:
            continue
        if used:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def paths_of(node: ast.ImportFrom | ast.Import | ast.Constant) -> list[str]:
    """Dotted paths into the library that an import or a string has."""
    if isinstance(node, ast.Constant):
        paths = [node.value] if isinstance(node.value, str) else []
    elif isinstance(node, ast.Import):
        paths = [one.name for one in node.names]
    else:
        paths = [f"{node.module}.{one.name}" for one in node.names]
    return [path for path in paths if path.startswith("heliostat.")]


def names_of_attributes(call: ast.Call) -> list[str]:
    """Names of attributes in a call that takes them as strings."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    strings = [one.value for one in call.args[1:2] if isinstance(one, ast.Constant)]
    return strings if called in BY_STRING else []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_script_uses_a_private_name_of_the_library(path):
    assert not list(private_uses(path.read_text(), members_in(path.parent)))


@pytest.mark.parametrize(
    "text",
    [
        "from heliostat.train.logprobs.policy import _hidden",
        "import heliostat._secret",
        "def gram(policy, rows):\n    return policy._hidden(rows)",
        "updater._with_anchor(part, report)",
        "experiment.updater._step(batch, batch, False, report, seed)",
        "import copy\ncopy.deepcopy(policy)._hidden(rows)",
        "from heliostat.x import Updater\nclass Ours(Updater):\n    def run(self):\n        self._step()",
        "from heliostat.train.update import updater\nupdater._secret.run",
        "policy._hidden = None",
        "from unittest.mock import patch\nfrom heliostat.x import Policy\npatch.object(Policy, '_hidden', None)",
        "getattr(policy, '_hidden')",
        "patch('heliostat.train.logprobs.policy.Policy._hidden')",
    ],
)
def test_a_private_name_is_found_wherever_it_comes_from(text):
    assert {"_hidden", "_with_anchor", "_step"} <= MEMBERS
    assert len(list(private_uses(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "class Run:\n    def _step(self):\n        pass\n    def run(self):\n        self._step()",
        "import torch\ntorch._hidden",
        "trainer._inner_training_loop()",
        "def count(func):\n    return func._schema.name",
        "from torch.utils._pytree import tree_leaves",
        "for _, name in pairs:\n    name.__class__",
        "getattr(policy, 'hidden')",
        "'heliostat.train.logprobs'",
    ],
)
def test_other_private_names_are_no_alarm(text):
    assert not list(private_uses(text))
