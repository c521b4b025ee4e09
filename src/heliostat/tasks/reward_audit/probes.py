"""Build worthless answers that no verifier should reward, for ``audit``.

Left out: judging them and drawing conclusions (``audit``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.types import Problem

FIXED: dict[str, str] = {
    "empty": "",
    "whitespace": " \n\t ",
    "0": "0",
    "1": "1",
    "42": "42",
    "-1": "-1",
    "all digits": "0 1 2 3 4 5 6 7 8 9",
    "0 to 200": " ".join(map(str, range(201))),
    "yes": "yes",
    "True": "True",
    "None": "None",
    "x": "x",
    "words": "I do not know the answer to this question.",
    "very long": "word " * 2000,
    "code": "__import__('os').system('true')",
    "huge number": "1e999",
    "nan": "nan",
    "LaTeX box": r"\boxed{}",
    "LaTeX infinity": r"$\infty$",
    "JSON object": '{"answer": 1, "score": 1.0}',
    "JSON list": "[]",
    "full marks": "score: 1.0",
    "unicode": "\u202e１２３ ∞ 🤖 \u0000 é",
    "asterisks": ".*",
}
"""The same text for every problem, regardless of the question."""


_EXPRESSION = re.compile(r"[-(]*\d[\d\s.()]*(?:[-+*/^][\d\s.()]+)+")


@dataclass(frozen=True, slots=True)
class Probe:
    """A named trick with one text per problem.

    Attributes:
        texts: per problem; ``None``: the probe does not apply to it.
    """

    name: str
    texts: tuple[str | None, ...]

    def completion(self, number: int, answer_after: str) -> str | None:
        """Return the completion that tries this trick on problem ``number``."""
        text = self.texts[number]
        return None if text is None else answer_after + text


def fixed_probes(problems: Sequence[Problem], num_borrowed: int) -> list[Probe]:
    """Return fixed texts, and up to ``num_borrowed`` oracle answers tried on every *other* problem."""
    probes = [Probe(f"fixed: {name}", (text,) * len(problems)) for name, text in FIXED.items()]
    sources: dict[str, int] = {}
    for number, problem in enumerate(problems):
        if problem.answer is not None:
            sources.setdefault(problem.answer, number)
    for answer, source in list(sources.items())[:num_borrowed]:
        texts = tuple(None if number == source else answer for number in range(len(problems)))
        probes.append(Probe(f"fixed: {_short(answer)} (another's answer)", texts))
    return probes


def containment_probes(problems: Sequence[Problem]) -> list[Probe]:
    """Return texts that contain the oracle answer without committing to it."""
    answers = [problem.answer for problem in problems]
    different = [next((other for other in answers if other not in (None, own)), None) for own in answers]
    shotgun = " ".join(dict.fromkeys(answer for answer in answers if answer is not None))
    patterns = {
        "not it, but another": "The answer is not {own} but {other}.",
        "it, then another": "{own} {other}",
        "another, then it": "{other} {own}",
        "all answers at once": "{shotgun}",
    }
    return [
        Probe(
            f"contains: {name}",
            tuple(
                None if own is None or other is None else pattern.format(own=own, other=other, shotgun=shotgun)
                for own, other in zip(answers, different, strict=True)
            ),
        )
        for name, pattern in patterns.items()
    ]


def copy_probes(problems: Sequence[Problem]) -> list[Probe]:
    """Return copies of the question, and the longest expression in it: some verifiers evaluate ``47 + 58``."""
    expressions = [max(_EXPRESSION.findall(problem.question), key=len, default=None) for problem in problems]
    return [
        Probe("copied question", tuple(problem.question for problem in problems)),
        Probe("copied expression", tuple(None if text is None else text.strip() for text in expressions)),
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 20 else line[:17] + "...")
