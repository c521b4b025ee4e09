"""Built-in verifiers: score a model's text against the question and its answer; 1.0 is full marks.

A verifier is a small frozen dataclass of settings; ``prepare`` returns the scoring function, and is called in the
worker process, so that heavy libraries load only there. This file imports the standard library only.

Left out: selecting a part of the completion, exceptions, limits (``verifier_pool.worker``), and weights
(``task``).
"""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from heliostat.extras import require
from heliostat.named_imports import resolve
from heliostat.tasks.verifiers.final_answer import is_prose as _is_prose  # noqa: F401 (scripts that compare verdicts ask for it here)
from heliostat.tasks.verifiers.import_ahead import import_ahead
from heliostat.tasks.verifiers.numerals import last_number, meets, parse_number
from heliostat.tasks.verifiers.reward_functions import COMPLETION_IDS, single_reward


@dataclass(frozen=True, slots=True)
class Sample:
    """The input of a verifier: the problem, and the text to score.

    Attributes:
        completion_ids: the sampled tokens; ``None``: nobody sampled the text.
    """

    prompt: str | list[dict[str, str]]
    answer: str | None
    columns: Mapping[str, Any]
    text: str
    completion_ids: tuple[int, ...] | None = None


Check = Callable[[Sample], object]  # a score, or None where the verifier does not apply; the worker checks the type


class Verifier(Protocol):
    """Settings of one verifier.

    Attributes:
        needs_answer: whether it compares with the problem's oracle answer.
        restricted: whether it runs with everything closed that could evaluate text as code; a user's own function may
            want to run programs, so it is not.
    """

    needs_answer: ClassVar[bool]
    restricted: ClassVar[bool]

    def prepare(self) -> Check: ...


@dataclass(frozen=True)
class Exact:
    """1.0 if the text equals the oracle answer, surrounding whitespace aside.

    Attributes:
        ignore_case: treat upper and lower case as equal.
    """

    needs_answer: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    ignore_case: bool = False

    def prepare(self) -> Check:
        return self._check

    def _check(self, sample: Sample) -> float:
        text, answer = sample.text.strip(), str(sample.answer).strip()
        if self.ignore_case:
            text, answer = text.casefold(), answer.casefold()
        return float(text == answer)


@dataclass(frozen=True)
class Numeric:
    """1.0 if the text is the oracle answer's number, however it is written.

    Attributes:
        tolerance: relative (absolute below 1); an answer written as a whole number must be met exactly.
        read: ``whole``: the text must be one number and nothing else; ``last``: the last number in it counts.
    """

    needs_answer: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    tolerance: float = 1e-6
    read: Literal["whole", "last"] = "whole"

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1, got {self.tolerance}")

    def prepare(self) -> Check:
        return self._check

    def _check(self, sample: Sample) -> float:
        answer = parse_number(str(sample.answer))
        if answer is None:
            raise ValueError(f"the oracle answer {sample.answer!r} is not a number")
        value = parse_number(sample.text) if self.read == "whole" else last_number(sample.text)
        return float(value is not None and meets(value, answer, self.tolerance))


@dataclass(frozen=True)
class Math:
    r"""1.0 if the text commits to the oracle answer as mathematics (LaTeX or plain), by math-verify.

    Both may be bare (``\frac12``) or delimited (``$\frac12$``, ``\boxed{\frac12}``). Sentences around an answer are
    read where they mark it (``The answer is``, ``$…$``); ``not 42 but 7`` contains two answers and commits to none.

    Attributes:
        lenient: accept a text without the percent or degree sign of the answer, and an exact value for a decimal.
    """

    needs_answer: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    lenient: bool = False

    def __post_init__(self) -> None:
        require("the verifier 'math'", "tasks", "math_verify")

    def prepare(self) -> Check:
        from heliostat.tasks.verifiers.math_equivalence import same  # 0.6 CPU-seconds, with sympy

        # The worker's own limits replace math-verify's alarm, so its warning does not apply.
        logging.getLogger("math_verify").setLevel(logging.ERROR)

        def check(sample: Sample) -> float:
            return float(same(str(sample.answer), sample.text, self.lenient))

        return check


@dataclass(frozen=True)
class ReasoningGym:
    """The score that a reasoning-gym dataset's own scorer gives to the text.

    Attributes:
        dataset: reasoning-gym's name of the dataset.
        settings: of that dataset; some scorers look at them.
    """

    needs_answer: ClassVar[bool] = False
    restricted: ClassVar[bool] = True
    dataset: str
    settings: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> Check:
        from heliostat.tasks.reasoning_gym_datasets import open_dataset  # 2 CPU-seconds: imports reasoning_gym

        dataset = open_dataset(self.dataset, self.settings, seed=0, size=1)

        def check(sample: Sample) -> object:
            entry = {key: sample.columns.get(key) for key in ("question", "answer")}
            return dataset.score_answer(sample.text, entry | {"metadata": sample.columns.get("metadata", {})})

        return check


@dataclass(frozen=True)
class Function:
    """A user's function with TRL's reward signature, ``fn(prompts, completions, **columns) -> list[float]``.

    It is called with lists of length one, so that one bad sample cannot cost its neighbours anything. Chat prompts
    come as lists of messages, and so do their completions. Columns that it does not name are kept from it unless it
    takes ``**kwargs``. One that needs ``completion_ids`` does not apply to texts that no model sampled.

    Attributes:
        path: ``module:function``, importable from ``folder`` or the working directory, or what a given function is
            called.
        arguments: further keyword arguments.
        folder: where it is imported from besides, empty: nowhere else.
        content: the function by value, where it travels so (``sandbox.pickling``); else it is imported.
        function: the function itself, in the process that has it.
    """

    needs_answer: ClassVar[bool] = False
    restricted: ClassVar[bool] = False
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    content: bytes = b""
    folder: str = ""
    function: Callable[..., Any] | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "function": None}

    def resolved(self) -> Callable[..., Any]:
        """Return the function, imported or unpickled in this process.

        Raises:
            ValueError: it cannot be imported, or made again from its bytes, in one sentence.
        """
        if self.function is not None:
            return self.function
        if not self.content:
            return resolve(self.path, self.folder)
        try:
            made: Callable[..., Any] = pickle.loads(self.content)
        except Exception as error:
            raise ValueError(f"cannot make '{self.path}' again: {type(error).__name__}: {error}") from error
        return made

    def prepare(self) -> Check:
        function = self.resolved()
        accepted = parameters(function)
        ids = named(function).get(COMPLETION_IDS)
        needs_ids = ids is not None and ids.default is ids.empty
        import_ahead(function)

        def check(sample: Sample) -> object:
            chat = not isinstance(sample.prompt, str)
            completion = [{"role": "assistant", "content": sample.text}] if chat else sample.text
            given: dict[str, Any] = {name: [value] for name, value in sample.columns.items()}
            given |= {"prompts": [sample.prompt], "completions": [completion]} | self.arguments
            if sample.completion_ids is not None:
                given[COMPLETION_IDS] = [list(sample.completion_ids)]
            elif needs_ids:
                return None
            if accepted is not None:
                given = {name: value for name, value in given.items() if name in accepted}
            return single_reward(function(**given), self.path)

        return check


VERIFIERS: dict[str, type[Verifier]] = {
    "exact": Exact,
    "numeric": Numeric,
    "math": Math,
    "reasoning-gym": ReasoningGym,
}


def parameters(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names that ``function`` accepts by keyword, or ``None`` if it accepts any."""
    declared = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in declared):
        return None
    return frozenset(parameter.name for parameter in declared)


def named(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of ``function`` other than ``*args`` and ``**kwargs``."""
    declared = inspect.signature(function).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in declared.items() if parameter.kind not in variable}
