"""A question with a tool: turns that call the tool, then ``say ANSWER``.

Left out: the questions and tools (``calculator``, ``lookup``, ``database``, ``python_expressions``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from heliostat.tasks.environments.contract import Environment, Step


@dataclass(frozen=True, slots=True)
class Question:
    """One problem of a shipped environment.

    Attributes:
        prompt: the text of the question.
        answer: the text to say.
        calls: actions that lead to the answer, in order.
    """

    prompt: str
    answer: str
    calls: tuple[str, ...]


class BadCall(ValueError):
    """The model's call was refused; the message is its observation."""


class QuestionEnvironment(Environment):
    """The base of environments that ask a question and give a tool to find its answer.

    A turn ``say X`` ends the episode, with reward 1 if X is the answer and 0 otherwise. Every other turn is a call of
    the tool. A subclass defines ``make_question`` and ``call``.

    Args:
        explain: begin every prompt with ``manual``; a model that was not shown demonstrations needs it.
    """

    manual: ClassVar[str] = ""
    """The actions, in words."""

    def __init__(self, explain: bool = False) -> None:
        self._explain = explain
        self._question = Question("", "", ())
        self._pending: list[str] = []

    def make_question(self, seed: int) -> Question:
        """Make the world and the question of an episode from ``seed`` alone."""
        raise NotImplementedError

    def call(self, action: str) -> str:
        """Answer a call of the tool.

        Raises:
            BadCall: it is none, or is refused.
        """
        raise NotImplementedError

    def problem(self, seed: int) -> dict[str, Any]:
        """Return the row of a problem: ``prompt``, ``answer`` and ``seed``."""
        question = self.make_question(seed)
        manual = f"{self.manual}\n" if self._explain else ""
        return {"prompt": manual + question.prompt, "answer": question.answer, "seed": seed}

    def reset(self, problem: Mapping[str, Any], seed: int) -> None:
        """Begin the episode of ``seed``; the question is the prompt of the problem's row."""
        self._question = self.make_question(seed)
        self._pending = [*self._question.calls, f"say {self._question.answer}"]

    def step(self, action: str) -> Step:
        action = action.strip()
        verb, _, said = action.partition(" ")
        if verb == "say":
            right = said.strip() == self._question.answer
            return Step(reward=float(right), done=True, info={"success": right, "calls": 0, "errors": 0})
        if self._pending[0] == action:
            self._pending.pop(0)
        try:
            return Step(self.call(action), info={"calls": 1, "errors": 0})
        except BadCall as refused:
            return Step(str(refused), info={"calls": 1, "errors": 1, "invalid": True})

    def oracle(self) -> str:
        """Return the next right action; calls that were made already are not repeated."""
        return self._pending[0]
