"""Tests reach the library through public names: none reads, calls or replaces a private name of another module."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCEPTIONS = {
    ("tests/reference/adapter_cases.py", "_bare_trainer"): "a helper of the scripts beside it",
    ("tests/reference/adapter_cases.py", "_compute_loss"): "TRL's own hook, which our trainer overrides",
    ("tests/reference/adapter_cases.py", "_set_normalizer"): "called as TRL's training loop does before that hook",
    ("tests/reference/record_peers.py", "_compute_loss"): "of TRL's trainers",
    ("tests/reference/record_peers.py", "_metrics"): "of TRL's trainers",
    ("tests/unit/adapters/test_trl.py", "_logs"): "of TRL's trainers",
    ("tests/unit/test_api.py", "_HOME"): "the table of the package's names, itself no name of the package",
    ("tests/unit/train/test_results.py", "_repr_html_"): "a notebook's own hook, called as a notebook calls it",
    ("tests/promises/test_cards.py", "_repr_html_"): "a notebook's own hook, called as a notebook calls it",
    ("tests/unit/train/rollouts/test_scheduler.py", "_begin"): "rollouts requested before a step asks for them",
    ("tests/unit/train/rollouts/test_scheduler.py", "_known"): "the futures of steps that nobody asked for yet",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def is_own(attribute: ast.Attribute) -> bool:
    return isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")


def trees(folder: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def defined(tree: ast.AST) -> set[str]:
    """Private names that a module gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.attr for target in targets if isinstance(target, ast.Attribute) and is_own(target)}
    return {name for name in names if is_private(name)}


REPLACING = ("setattr", "delattr", "getattr", "patch", "object")


def used(tree: ast.AST) -> Iterator[str]:
    """Private names that a module imports, reads from other objects, or names in a call that replaces them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            if not is_own(node):
                yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in REPLACING:
            strings = (arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant))
            yield from (text.rpartition(".")[2] for text in strings if isinstance(text, str))


def offences(tree: ast.AST, private: set[str]) -> set[str]:
    return (set(used(tree)) & private) - defined(tree)


def test_no_test_uses_a_private_name_of_the_library():
    private = set().union(*(defined(tree) for folder in ("src/heliostat", "tests") for _, tree in trees(folder)))
    found = {(path, name) for path, tree in trees("tests") for name in offences(tree, private)}
    assert found == EXCEPTIONS.keys(), "use an argument, a public name or a fake"


def test_every_way_to_a_private_name_is_seen():
    for line in (
        "from heliostat.api import _x",
        "pool._x.stop()",
        "pool.threads[0]._x = 1",
        "monkeypatch.setattr(pool, '_x', None)",
        "monkeypatch.setattr('heliostat.api._x', None)",
        "mock.patch.object(pool, '_x')",
        "with patch('heliostat.api._x'): ...",
        "getattr(pool, '_x')()",
    ):
        assert offences(ast.parse(line), {"_x"}) == {"_x"}, line
    for line in ("def _x(): ...\n_x()", "self._x = 1", "pool.__enter__()", "model._of_another_library"):
        assert not offences(ast.parse(line), {"_x"}), line
