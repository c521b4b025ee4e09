"""Questions that one Python expression answers, in an evaluator that knows literals, arithmetic and a few functions."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from heliostat.tasks.environments.shipped.question import BadCall, Question, QuestionEnvironment
from heliostat.tasks.sandbox.safe_eval import LiteralEvaluator

MAX_BITS = 4096
"""Of a number that an expression may compute."""

MAX_OBSERVATION = 100
"""Characters of an observation."""

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "divmod": divmod,
    "len": len,
    "max": max,
    "min": min,
    "sorted": sorted,
    "sum": sum,
}


class PythonExpressions(QuestionEnvironment):
    """A turn is one expression, like ``max(12, 34) ** 2 % 7``; ``say VALUE`` ends the episode.

    Expressions run in the sealed evaluator that scores answers, so no turn can import, name attributes or open files.

    Args:
        max_operand: the numbers of the questions are from 2 to this.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: ``max_operand`` is not from 9 to 999.
    """

    manual: ClassVar[str] = "Write one Python expression to compute it. Finish with 'say VALUE'."

    def __init__(self, max_operand: int = 99, explain: bool = False) -> None:
        super().__init__(explain)
        if not 9 <= max_operand <= 999:
            raise ValueError(f"max_operand = {max_operand}: must be from 9 to 999")
        self._max_operand = max_operand

    def make_question(self, seed: int) -> Question:
        draw = random.Random(f"python {seed}")
        a, b, c, d = (draw.randint(2, self._max_operand) for _ in range(4))
        prompt, expression = draw.choice(
            (
                (f"{a} to the power {b}, modulo {c}", f"{a} ** {b} % {c}"),
                (f"{a} times {b} plus {c} times {d}", f"{a} * {b} + {c} * {d}"),
                (f"the larger of {a} times {b} and {c} times {d}", f"max({a} * {b}, {c} * {d})"),
                (f"the sum of {a}, {b}, {c} and {d}", f"sum([{a}, {b}, {c}, {d}])"),
            )
        )
        return Question(prompt, evaluate(expression), (expression,))

    def call(self, action: str) -> str:
        return evaluate(action)


def evaluate(expression: str) -> str:
    """Return the value of an expression as text.

    Raises:
        BadCall: it cannot be evaluated, or grows too large.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return repr(_Evaluator().visit(tree))[:MAX_OBSERVATION]
    except (ArithmeticError, LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadCall(f"error: {message}"[:MAX_OBSERVATION]) from error


class _Evaluator(LiteralEvaluator):
    """The sealed evaluator with bounded numbers, no texts (``'%999999999d' % 1``), and the functions above."""

    def __init__(self) -> None:
        super().__init__(_FUNCTIONS, permits=lambda value: True)

    def visit_Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int | float | complex):
            raise ValueError("only numbers")
        return node.value

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.visit(node.left), self.visit(node.right)
        if _bits_of(node.op, left, right) > MAX_BITS:
            raise ValueError("too large")
        return self._operator(node.op)(left, right)


def _bits_of(operation: ast.AST, left: Any, right: Any) -> float:
    """Return a bound on the size of a result: bits of a number, items of a sequence."""
    if not isinstance(left, int) or not isinstance(right, int):
        sizes = [value if isinstance(value, int) else len(value) for value in (left, right) if _is_sized(value)]
        return (sizes[0] * sizes[1] if isinstance(operation, ast.Mult) else sum(sizes)) if len(sizes) == 2 else 0
    if isinstance(operation, ast.Pow):
        return left.bit_length() * max(right, 0)
    if isinstance(operation, ast.LShift):
        return left.bit_length() + max(right, 0)
    return left.bit_length() + right.bit_length()


def _is_sized(value: Any) -> bool:
    return isinstance(value, int) or hasattr(value, "__len__")
