"""Prevent model text from running as Python, also inside the libraries that score it.

Four of reasoning-gym's scorers pass the answer to ``eval``. Six more, and math-verify, use sympy's parser, which is
built on ``eval``. Two layers stop this, both in the worker process only:

1. In the modules of those libraries the names ``eval``, ``exec`` and ``compile`` are replaced by an evaluator that
walks
   the syntax tree and accepts literals, arithmetic and, for sympy, elementary mathematics: no attributes, no imports.
   (``Integral(f, x)`` is refused: it would count as having integrated.)
2. An audit hook refuses anything that gets past layer 1 while a text is scored: running code compiled from text,
   unpickling, starting programs, opening connections. Such an attempt counts as a verifier failure.

Left out: limits on time and memory (``verifier_pool.worker``, ``verifier_pool.pool``), and users' own functions, which
may want to run programs.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_JUDGES = ("reasoning_gym", "math_verify", "latex2sympy2_extended")
_CODE_GENERATORS = ("sympy.polys.monomials",)  # unrolls loops over exponents, from its own template
_REFUSED_EVENTS = frozenset(
    {
        "ctypes.dlopen",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pickle.find_class",
        "socket.bind",
        "socket.connect",
        "subprocess.Popen",
    }
)


class LiteralEvaluator(ast.NodeVisitor):
    """Evaluate an expression made of literals, arithmetic, and the names and calls that ``permits`` lets through."""

    def __init__(self, names: Mapping[str, Any], permits: Callable[[Any], bool]) -> None:
        self.names = names
        self.permits = permits

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(f"{type(node).__name__} is not plain data or mathematics")

    def visit_Expression(self, node: ast.Expression) -> Any:
        return self.visit(node.body)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_List(self, node: ast.List) -> Any:
        return [self.visit(item) for item in node.elts]

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(item) for item in node.elts)

    def visit_Set(self, node: ast.Set) -> Any:
        return {self.visit(item) for item in node.elts}

    def visit_Dict(self, node: ast.Dict) -> Any:
        pairs = zip(node.keys, node.values, strict=True)
        return {self.visit(key): self.visit(value) for key, value in pairs if key is not None}

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return self._operator(node.op)(self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        return self._operator(node.op)(self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            return self.generic_visit(node)
        return self._operator(node.ops[0])(self.visit(node.left), self.visit(node.comparators[0]))

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id not in self.names or not self.permits(self.names[node.id]):
            raise ValueError(f"the name '{node.id}' is not plain data or mathematics")
        return self.names[node.id]

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name):
            return self.generic_visit(node.func)
        function = self.visit(node.func)
        keywords = {keyword.arg: self.visit(keyword.value) for keyword in node.keywords if keyword.arg == "evaluate"}
        return function(*(self.visit(argument) for argument in node.args), **keywords)

    def _operator(self, node: ast.AST) -> Callable[..., Any]:
        if type(node) not in _OPERATORS:
            self.generic_visit(node)
        return _OPERATORS[type(node)]


def evaluate_literal(source: str, *_namespaces: Any) -> Any:
    """Evaluate Python literals and arithmetic only; replaces ``eval`` in scorers."""
    return LiteralEvaluator({}, permits=lambda value: False).visit(ast.parse(source.strip(), mode="eval"))


def patch_eval() -> None:
    """Replace ``eval``, ``exec`` and ``compile`` in every loaded library that scores text (layer 1)."""
    judges = [module for name, module in sys.modules.items() if name.partition(".")[0] in _JUDGES]
    for module in judges:
        vars(module).update(eval=evaluate_literal, exec=_refuse_exec)
    if judges:  # both use sympy; where only a user's own function does, its sympy stays as it is
        _patch_sympy()


def install_audit_hook() -> None:
    """Install the audit hook (layer 2). It cannot be removed, and does nothing outside ``restricted_execution``."""
    sys.addaudithook(_AUDIT_HOOK.hear)


@contextmanager
def restricted_execution() -> Iterator[None]:
    """Refuse code execution inside the block, by the installed audit hook.

    Raises:
        PermissionError: on leaving, if something was refused, even if the scorer caught the refusal.
    """
    _AUDIT_HOOK.armed, _AUDIT_HOOK.caught = True, ""
    try:
        yield
    finally:
        _AUDIT_HOOK.armed = False
    if _AUDIT_HOOK.caught:
        raise PermissionError(_AUDIT_HOOK.caught)


class _AuditHook:
    """State of the audit hook."""

    def __init__(self) -> None:
        self.armed = False
        self.caught = ""

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in _REFUSED_EVENTS or (event == "exec" and _is_compiled_from_text(arguments[0], sys._getframe(1))):
            self.caught = f"a scorer was about to act on what a model wrote (audit event '{event}')"
            raise PermissionError(self.caught)


_AUDIT_HOOK = _AuditHook()


def _is_compiled_from_text(code: object, frame: FrameType | None) -> bool:
    """Return whether ``code``, about to run in ``frame``, was compiled from a string that may hold a model's text."""
    if not isinstance(code, CodeType) or not code.co_filename.startswith("<") or "frozen" in code.co_filename:
        return False
    if frame is not None and frame.f_globals.get("__name__") in _CODE_GENERATORS:
        return False
    while frame is not None:  # a module being imported may define named tuples and data classes, made from strings
        if frame.f_code.co_name == "exec_module" and "importlib" in frame.f_code.co_filename:
            return False
        frame = frame.f_back
    return True


def _refuse_exec(*_: Any) -> None:
    raise PermissionError("exec is closed while answers are judged")


def _patch_sympy() -> None:
    import sympy
    from sympy.core.function import UndefinedFunction
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import BooleanFunction
    from sympy.parsing import sympy_parser

    numbers = (sympy.Integer, sympy.Float, sympy.Rational)
    classes = (sympy.Function, sympy.Symbol, sympy.Add, sympy.Mul, sympy.Pow, Relational, BooleanFunction, *numbers)
    functions = (sympy.sqrt, sympy.cbrt, sympy.root, sympy.Mod)

    def permits(value: Any) -> bool:
        if isinstance(value, type):
            return issubclass(value, classes) and not isinstance(value, UndefinedFunction)
        return isinstance(value, sympy.Basic) or any(value is function for function in functions)

    def read(source: str | ast.AST, outer: Mapping[str, Any], inner: Mapping[str, Any]) -> Any:
        tree = ast.parse(source.strip(), mode="eval") if isinstance(source, str) else source
        return LiteralEvaluator({**outer, **inner}, permits).visit(tree)

    public = {name: getattr(sympy, name) for name in sympy.__all__}

    def import_sympy(source: str, namespace: dict[str, Any]) -> None:
        if source != "from sympy import *":
            _refuse_exec()
        namespace.update(public)

    shadows: dict[str, Any] = {"eval": read, "exec": import_sympy, "compile": lambda tree, *_: tree}
    parser: ModuleType = sympy_parser
    vars(parser).update(shadows)
