"""Write an environment's observations in a model's format, as token ids that follow a sampled turn.

    ids of the prompt | sampled ids of a turn | continuation | sampled ids of the next turn | continuation | ...

Ids are only ever appended. A sampled turn keeps its ids, and an observation is tokenised once, as the text that the
chat template writes between one assistant turn and the beginning of the next one. Control tokens in an observation are
encoded as text (``control_tokens``), so that no observation can end a turn or begin one.

Left out: the first prompt's own encoding (``encoding``), and a turn's meaning (``tasks.environments``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.chat_turns import ChatTurns, probe_chat
from heliostat.models.prompts.control_tokens import spell_all
from heliostat.models.prompts.encoding import chat_messages, decode
from heliostat.models.prompts.plain_turns import PlainTurns
from heliostat.models.prompts.tool_list import CALL_FORM, ToolList
from heliostat.types import Message, Problem

Observed = str | Sequence[Message]
"""A text, or chat messages with ``role`` and ``content``."""


class Turns(Protocol):
    """One form of turns: plain text, or a chat template's."""

    def continuation(self, observation: Observed, last_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids that follow a sampled turn."""
        ...

    def with_observation(self, problem: Problem, observation: Observed) -> Problem:
        """Append the first observation to a problem's prompt."""
        ...


@dataclass(frozen=True, slots=True)
class TurnFormat:
    """A model's format of several turns, found by probes once per run and form of prompt.

    Safe to call from several threads.
    """

    turns: Turns
    tools: ToolList

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        problem: Problem,
        chat: bool | Literal["auto"] = "auto",
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        call_form: str = CALL_FORM,
    ) -> TurnFormat:
        """Return the format of a problem's prompt: plain text or chat, as ``encode_problem`` decides.

        Args:
            system: ``model.system``, as for ``encode_problem``.
            tools: JSON schemas of the tools that the model may call.
            call_form: a sentence that says how a call is written, for templates that list no tools.

        Raises:
            ConfigError: the chat template cannot continue a conversation after an assistant turn.
        """
        messages = chat_messages(loaded, problem, chat, system)
        roles = None if messages is None else tuple(str(message["role"]) for message in messages)
        key = f"turn format {roles} {bool(tools)}"
        if key not in loaded.memo:
            spell_all(loaded)
            loaded.memo[key] = PlainTurns.of(loaded) if roles is None else probe_chat(loaded, roles, bool(tools))
        turns = loaded.memo[key]
        assert isinstance(turns, PlainTurns | ChatTurns)
        reads_tools = isinstance(turns, ChatTurns) and turns.lists_tools
        takes_system = isinstance(turns, ChatTurns) and turns.takes_system
        return cls(turns, ToolList(tuple(tools), call_form, system, reads_tools, takes_system))

    def continuation(self, observation: Observed, last_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids between a sampled turn and the model's next turn.

        Args:
            observation: the environment's answer.
            last_ids: sampled ids of the turn. The template's closing marker follows only as far as they lack it: a turn
                that ended with ``turn_end_id`` has it, and one that ended with a stop string or another
                end-of-sequence id does not.

        Raises:
            ValueError: the template refuses the observation, or leaves it out.

        Limits:
            For a template that only appends, the ids of prompt, turn and continuation decode to its rendering of the
            whole conversation.
        """
        return self.turns.continuation(observation, last_ids)

    def with_observation(self, problem: Problem, observation: Observed | None) -> Problem:
        """Return the problem with its tools listed and the first observation in its prompt.

        A text is appended to the last user message (of a plain prompt: to its text) after a line break; messages extend
        the chat. Tools go where the template reads them (column ``tools``), else into the system message, else before
        the question.

        Limits:
            Without tools and with an empty observation, the problem is unchanged.
        """
        asked = self.turns.with_observation(problem, observation) if observation else problem
        return self.tools.listed_in(asked)


def observation_text(loaded: LoadedModel, token_ids: Sequence[int]) -> str:
    """Decode a continuation for people: the observation, without the headers that a chat template writes around it.

    Limits:
        A continuation of several messages, or of a form that this model's probes have not seen, is decoded whole.
    """
    text = decode(loaded, token_ids)
    forms = (form for form in list(loaded.memo.values()) if isinstance(form, ChatTurns))
    return next((found for form in forms if (found := form.unframed(text)) is not None), text)
