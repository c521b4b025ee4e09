"""Chained arithmetic with a calculator that does one operation a call."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable
from typing import ClassVar

from heliostat.tasks.environments.shipped.question import BadCall, Question, QuestionEnvironment

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_CALL = re.compile(r"(-?\d{1,9}) ?([-+*]) ?(-?\d{1,9})")


class Calculator(QuestionEnvironment):
    """``37 * 48`` returns 1776; ``say NUMBER`` ends the episode.

    The prompt is an expression like ``(37 * 48) + 95``. A call has one operator, so each uses the result of the one
    before it.

    Args:
        num_operations: in the expression.
        max_operand: the numbers of the expression are from 2 to this.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: there is no operation, or more than 6, or ``max_operand`` is not from 2 to 999.
    """

    manual: ClassVar[str] = "Write 'A + B', 'A - B' or 'A * B' to compute it. Finish with 'say NUMBER'."

    def __init__(self, num_operations: int = 2, max_operand: int = 99, explain: bool = False) -> None:
        super().__init__(explain)
        if not 1 <= num_operations <= 6:
            raise ValueError(f"num_operations = {num_operations}: must be from 1 to 6")
        if not 2 <= max_operand <= 999:
            raise ValueError(f"max_operand = {max_operand}: must be from 2 to 999")
        self._num_operations = num_operations
        self._max_operand = max_operand

    def make_question(self, seed: int) -> Question:
        draw = random.Random(f"calculator {seed}")
        value = draw.randint(2, self._max_operand)
        expression, calls = str(value), []
        for index in range(self._num_operations):
            sign = draw.choice("+-*" if abs(value) < 1000 else "+-")  # keeps numbers short enough to copy
            operand = draw.randint(2, self._max_operand)
            calls.append(f"{value} {sign} {operand}")
            value = _OPERATORS[sign](value, operand)
            expression = f"({expression}) {sign} {operand}" if index else f"{expression} {sign} {operand}"
        return Question(expression, str(value), tuple(calls))

    def call(self, action: str) -> str:
        found = _CALL.fullmatch(action)
        if found is None:
            raise BadCall("a + b or say")
        left, sign, right = found.groups()
        return str(_OPERATORS[sign](int(left), int(right)))
