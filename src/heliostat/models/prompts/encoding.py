"""Encode problems to token ids and decode them; text is tokenised exactly once, here.

The form of a prompt (``chat`` in the recipe):

- chat messages always go through the tokenizer's chat template;
- plain text with ``chat = true`` becomes one user message; with ``false`` it is used unchanged;
- with ``auto`` it becomes a user message where the tokenizer has a chat template, except where the tokenizer declares
  a separator (the tiny model's does): that is a plain form of its own, ``bos text sep``, and it is shorter.

Control tokens that occur in data are encoded as text (``control_tokens``).

Left out: images, and worked conversations (``conversations``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from heliostat.arguments import texts
from heliostat.config import ConfigError
from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.chat_rendering import encode_chat
from heliostat.models.prompts.control_tokens import encode_typed, has_typed
from heliostat.types import Problem, Prompt


def encode_problem(
    loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"] = "auto", system: str = ""
) -> Prompt:
    """Render and tokenise a problem.

    Args:
        problem: plain text, or messages; a last message from the assistant is continued, not answered.
        chat: see the file's docstring.
        system: put first in every chat prompt that does not bring a system message of its own.

    Returns:
        The prompt; sampling continues exactly after its last id.

    Raises:
        ConfigError: a chat prompt without a chat template, or ``system`` with a prompt that is not a chat.
        ValueError: the template refuses the messages, the prompt is empty, or it leaves no room for one token.
    """
    messages = chat_messages(loaded, problem, chat, system)
    if messages is None:
        ids = _encode_text(loaded, problem)
    else:
        to_continue = bool(messages) and messages[-1]["role"] == "assistant"
        ids = encode_chat(loaded, problem, messages, to_continue)
    if not ids:
        raise ValueError(f"{problem.described}: its prompt is empty")
    if len(ids) > loaded.context_length - 1:
        raise ValueError(
            f"{problem.described}: its prompt has {len(ids)} tokens, but the context of model "
            f"'{loaded.name}' holds {loaded.context_length} and needs one for the answer; shorten or remove it"
        )
    return Prompt(problem, tuple(ids))


def encode_solution(loaded: LoadedModel, prompt: Prompt, solution: str) -> tuple[int, ...]:
    """Return the ids that a model would have sampled after ``prompt`` to write ``solution`` and stop.

    The solution is tokenised by itself, never together with the prompt, because a sampler cannot reach back over that
    border either. A prompt that closes its own turns with the chat's turn marker is answered with the same marker.

    Returns:
        Ids that end with an end-of-sequence id.
    """
    solution = without_opened(loaded, prompt, solution)
    ids = encode_typed(loaded, solution, place=f"a solution of {prompt.problem.described}")
    return (*ids, loaded.turn_end_id if loaded.turn_end_id in prompt.context_ids else loaded.eos_id)


def decode(loaded: LoadedModel, token_ids: Sequence[int]) -> str:
    """Decode sampled ids to text, without special tokens and without cleaning up spaces."""
    text = loaded.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list comes back only for a batch
    return text


def decode_to_stop(
    loaded: LoadedModel, token_ids: Sequence[int], stop: Sequence[str], given_ids: Sequence[int] = ()
) -> str:
    """Decode a turn up to the first of the strings that end one.

    Args:
        given_ids: a part of the turn that was given before ``token_ids``; a stop string in it does not count.
    """
    given = decode(loaded, given_ids) if given_ids else ""
    text = decode(loaded, [*given_ids, *token_ids])
    places = (text.find(one, len(given)) for one in texts(stop, "stop"))
    return text[: min((place for place in places if place >= 0), default=len(text))]


def without_opened(loaded: LoadedModel, prompt: Prompt, solution: str) -> str:
    """Remove a solution's opening tag if the prompt has already opened the same (``<think>``)."""
    opening = re.match(r"<[^<>/\s]+>|\[[A-Z_]+\]", solution)
    if opening is None:
        return solution
    tail = str(loaded.tokenizer.decode(list(prompt.context_ids[-16:])))
    asked = prompt.problem.prompt
    typed = isinstance(asked, str) and asked.rstrip().endswith(opening.group())
    opened = tail.rstrip().endswith(opening.group()) and not typed
    return solution[opening.end() :].lstrip("\n") if opened else solution


def chat_messages(
    loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"], system: str
) -> list[dict[str, Any]] | None:
    """Return the chat messages of a problem, or ``None`` if it is plain text."""
    has_template = bool(loaded.tokenizer.chat_template)
    if isinstance(problem.prompt, str):
        wanted = has_template and loaded.tokenizer.sep_token is None if chat == "auto" else chat
        if not wanted and system:
            raise ConfigError("model.system needs chat prompts; set model.chat = true or leave model.system empty")
        if not wanted:
            return None
        messages = [{"role": "user", "content": problem.prompt}]
    else:
        messages = [dict(message) for message in problem.prompt]
    if not has_template:
        raise ConfigError(
            f"{problem.described} is a chat prompt, but the tokenizer of model '{loaded.name}' has no chat "
            f"template; use plain-text prompts with model.chat = false"
        )
    if system and not (messages and messages[0].get("role") == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _encode_text(loaded: LoadedModel, problem: Problem) -> list[int]:
    assert isinstance(problem.prompt, str)
    if has_typed(loaded, problem.prompt, problem.markup):
        start, end = affixes(loaded)
        ids = [*start, *encode_typed(loaded, problem.prompt, problem.markup, problem.described), *end]
    else:
        ids = list(loaded.tokenizer.encode(problem.prompt, verbose=False))
    # Some tokenizers close every text with an end-of-sequence token, which is no way to begin an answer.
    if ids and ids[-1] == loaded.eos_id and not problem.prompt.endswith(str(loaded.tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def affixes(loaded: LoadedModel) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after every text."""
    bare = list(loaded.tokenizer.encode("a", add_special_tokens=False))
    whole = list(loaded.tokenizer.encode("a"))
    start = next(number for number in range(len(whole)) if whole[number : number + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
