"""From problems to token ids and back; text is tokenised exactly once, here.

Which form a prompt takes (``chat`` in the recipe):

- chat messages always go through the tokenizer's chat template;
- plain text with ``chat = true`` becomes one user message; with ``false`` it is taken as it stands;
- with ``auto`` it becomes a user message where the tokenizer has a chat template, except where the tokenizer declares
  a separator (the tiny model's does): that is a plain form of its own, ``bos text sep``, and it is shorter.

Left out: tool calls, images, and several turns of the model's own (a problem is one prompt).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from heliostat.config import ConfigError
from heliostat.models.loaded import LoadedModel
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
        The prompt; what the model samples next starts exactly behind its last id.

    Raises:
        ConfigError: a chat prompt without a chat template, or ``system`` with a prompt that is not a chat.
        ValueError: the template refuses the messages, the prompt is empty, or it leaves no room for one token.
    """
    messages = _messages(loaded, problem, chat, system)
    ids = _encode_text(loaded, problem) if messages is None else _encode_chat(loaded, problem, messages)
    if not ids:
        raise ValueError(f"{named(problem)}: its prompt is empty")
    if len(ids) > loaded.context_length - 1:
        raise ValueError(
            f"{named(problem)}: its prompt has {len(ids)} tokens, but the context of model "
            f"'{loaded.name}' holds {loaded.context_length} and needs one for the answer; shorten or remove it"
        )
    return Prompt(problem, tuple(ids))


def rendered_prompts(
    loaded: LoadedModel, problems: Sequence[Problem], chat: bool | Literal["auto"] = "auto", system: str = ""
) -> list[str] | None:
    """The prompts of many problems as texts, still to be tokenised; ``None`` where one of them is refused."""
    from jinja2.exceptions import TemplateError

    try:
        several = [_messages(loaded, problem, chat, system) for problem in problems]
        chats = [messages for messages in several if messages is not None]
        if any(messages and messages[-1].get("role") == "assistant" for messages in chats):
            return None
        made: Any = (
            loaded.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True) if chats else ()
        )
    except (TemplateError, KeyError, ValueError, TypeError):
        return None
    texts = iter(made)
    return [
        str(problem.prompt if messages is None else next(texts))
        for problem, messages in zip(problems, several, strict=True)
    ]


def encode_solution(loaded: LoadedModel, prompt: Prompt, solution: str) -> tuple[int, ...]:
    """The ids a model would have sampled behind ``prompt`` to say ``solution`` and stop.

    The solution is tokenised by itself, never together with the prompt, because a sampler cannot reach back over that
    border either. A prompt that closes its own turns with the chat's turn marker is answered with the same marker.

    Returns:
        Ids that end with an end-of-sequence id.
    """
    ids = loaded.tokenizer.encode(solution, add_special_tokens=False, verbose=False)
    return (*ids, loaded.turn_end_id if loaded.turn_end_id in prompt.context_ids else loaded.eos_id)


def named(problem: Problem) -> str:
    """A problem as messages name it, with the place it stands at where that is known."""
    return f"problem '{problem.problem_id}'" + (f" ({problem.place})" if problem.place else "")


def decode(loaded: LoadedModel, token_ids: Sequence[int]) -> str:
    """The text of sampled ids, without special tokens and without any tidying of spaces."""
    text = loaded.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list comes back only for a batch
    return text


def _messages(
    loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"], system: str
) -> list[dict[str, str]] | None:
    """The chat messages of a problem, or ``None`` where it is to be taken as plain text."""
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
            f"{named(problem)} is a chat prompt, but the tokenizer of model '{loaded.name}' has no chat "
            f"template; use plain-text prompts with model.chat = false"
        )
    if system and not (messages and messages[0].get("role") == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _encode_chat(loaded: LoadedModel, problem: Problem, messages: list[dict[str, str]]) -> list[int]:
    from jinja2.exceptions import TemplateError

    to_continue = bool(messages) and messages[-1].get("role") == "assistant"
    try:
        ids: Any = loaded.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not to_continue,
            continue_final_message=to_continue,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},
        )
    except (TemplateError, KeyError, ValueError, TypeError) as error:  # TypeError: Python's own, out of an expression
        raise ValueError(
            f"{named(problem)}: the chat template of model '{loaded.name}' refuses its messages: {error}"
        ) from error
    return [int(token) for token in ids]


def _encode_text(loaded: LoadedModel, problem: Problem) -> list[int]:
    assert isinstance(problem.prompt, str)
    ids = loaded.tokenizer.encode(problem.prompt, verbose=False)
    # Some tokenizers close every text with an end-of-sequence token, which is no way to begin an answer.
    if ids and ids[-1] == loaded.eos_id and not problem.prompt.endswith(str(loaded.tokenizer.eos_token)):
        ids = ids[:-1]
    return list(ids)
