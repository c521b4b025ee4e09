"""List the tools that a model may call in its prompt: where its chat template reads them, else as text.

    You may call these tools:
    {"type": "function", "function": {"name": "lookup", ...}}
    To call one, write <tool_call>{"name": "...", "arguments": {...}}</tool_call>

Left out: the schemas' origin and the parsing of calls (``tasks.environments.tools``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from heliostat.types import Problem

CALL_FORM = 'To call one, write <tool_call>{"name": "...", "arguments": {...}}</tool_call>'
_HEADLINE = "You may call these tools:"


@dataclass(frozen=True, slots=True)
class ToolList:
    """The tools of a run.

    Attributes:
        schemas: JSON schemas, one a tool.
        call_form: a sentence that says how a call is written.
        system: the recipe's system message.
        by_template: whether the chat template lists tools itself.
        takes_system: whether the chat template takes a system message.
    """

    schemas: tuple[Mapping[str, Any], ...]
    call_form: str
    system: str
    by_template: bool
    takes_system: bool

    @property
    def text(self) -> str:
        """The list as text, with the form of a call where the chat template does not say it."""
        lines = [json.dumps(schema, ensure_ascii=False) for schema in self.schemas]
        return "\n".join([_HEADLINE, *lines, *([] if self.by_template else [self.call_form])])

    def listed_in(self, problem: Problem) -> Problem:
        """Return the problem with the tools in its prompt; see ``TurnFormat.with_observation``."""
        if not self.schemas:
            return problem
        if self.by_template:
            return replace(problem, columns={**problem.columns, "tools": [dict(schema) for schema in self.schemas]})
        if self.takes_system:
            return self._in_system(problem)
        return self._in_question(problem)

    def told_in(self, problem: Problem) -> Problem:
        """Return a problem from ``listed_in`` for another reader, with tools of the chat template in its text."""
        return self._in_question(problem) if self.by_template and self.schemas else problem

    def _in_system(self, problem: Problem) -> Problem:
        asked = problem.prompt
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        own = self.system
        if messages and messages[0]["role"] == "system":
            own = str(messages.pop(0)["content"])
        text = "\n\n".join(part for part in (own, self.text) if part)
        return replace(problem, prompt=({"role": "system", "content": text}, *messages), markup=())

    def _in_question(self, problem: Problem) -> Problem:
        lead = self.text + "\n\n"
        if isinstance(problem.prompt, str):
            moved = tuple((start + len(lead), end + len(lead)) for start, end in problem.markup)
            return replace(problem, prompt=lead + problem.prompt, markup=moved)
        messages = [dict(message) for message in problem.prompt]
        first = next((number for number, message in enumerate(messages) if message["role"] == "user"), 0)
        messages[first]["content"] = lead + str(messages[first]["content"])
        return replace(problem, prompt=tuple(messages))
