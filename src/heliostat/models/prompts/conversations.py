"""Split worked conversations into assistant turns, each with its prompt.

Every assistant turn becomes a prompt (all messages before it, rendered as for sampling) and the ids that a model would
have sampled there, without words of other roles. Prompts are rendered anew for every turn, so thoughts that
a template drops from older turns are dropped, as they are when the model is used.

Left out: conversations in plain text, and the loss (``train.sft.updater``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.chat_rendering import encode_chat, render
from heliostat.models.prompts.control_tokens import encode_marked, free_mark, marked
from heliostat.models.prompts.encoding import chat_messages, encode_problem, encode_solution
from heliostat.types import Message, Problem, Prompt

Taught = tuple[Prompt, tuple[int, ...]]


def encode_turns(
    loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"] = "auto", system: str = ""
) -> Iterator[Taught]:
    """Encode the assistant turns of a problem's worked conversation, each with its prompt.

    Yields:
        A prompt, and ids that end with an end-of-sequence id.

    Raises:
        ConfigError, ValueError: as ``encode_problem``; or several turns and a prompt that is no chat.
    """
    before = chat_messages(loaded, problem, chat, system)
    if before is None:
        answers = [message for message in problem.turns if message["role"] == "assistant"]
        if len(problem.turns) > 1 or answers[0].get("tool_calls"):
            raise ValueError(
                f"{problem.described}: a conversation of several turns needs a chat template; set model.chat = true"
            )
        prompt = encode_problem(loaded, problem, chat, system)
        yield prompt, encode_solution(loaded, prompt, str(answers[0]["content"]))
        return
    said: list[Message] = list(before)
    for turn in problem.turns:
        if turn["role"] == "assistant":
            prompt = Prompt(problem, tuple(encode_chat(loaded, problem, said, to_continue=False)))
            yield prompt, _answer(loaded, prompt, said, turn)
        said.append(turn)


def _answer(loaded: LoadedModel, prompt: Prompt, said: Sequence[Message], turn: Message) -> tuple[int, ...]:
    """Encode one turn: as the template renders it, or its plain text if the template renders it differently."""
    contents = [str(message["content"]) for message in (*said, turn)]
    mark = free_mark(contents)
    *before, last = [
        {**message, "content": marked(loaded, text, mark)}
        for message, text in zip((*said, turn), contents, strict=True)
    ]
    asked = render(loaded, prompt.problem, before)
    whole = render(loaded, prompt.problem, [*before, last], generation_prompt=False)
    written = whole[len(asked) :] if whole.startswith(asked) else ""
    words = str(last["content"])
    called = [_called(call) for call in turn.get("tool_calls") or ()]
    if lost := [name for name in called if name not in written]:
        raise ValueError(
            f"{prompt.problem.described}: the chat template of model '{loaded.name}' does not write down which tool "
            f"the assistant calls ({lost[0]!r}); it was made for a model without tools"
        )
    if words.strip() not in written:
        return encode_solution(loaded, prompt, contents[-1])
    ids = encode_marked(loaded, written, mark)
    ends = [number for number, token in enumerate(ids) if token in loaded.eos_ids]
    if ends:
        return tuple(ids[: ends[0] + 1])
    return (*encode_marked(loaded, written.rstrip(), mark), loaded.eos_id)


def _called(call: Any) -> str:
    """Return the name of the tool in a call, in OpenAI's form or bare."""
    inner = call.get("function", call) if isinstance(call, Mapping) else {}
    return str(inner.get("name", "")) if isinstance(inner, Mapping) else ""
