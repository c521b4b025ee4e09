"""Checks that a run's prompts, solutions and markers survive the model's tokenizer, before step 1.

    prompts     fit the context with room for a whole completion; the chat template accepts every one of them
    solutions   (of a warm start) exist, and fit the context together with their prompts
    markers     answer markers and stop strings are still there after decoding

A hundred thousand short rows take seconds, since they are only rendered (``models.prompts.token_counts``).

Left out: whether right answers are rewarded (``reward_audit``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from heliostat.config import ConfigError, Recipe
from heliostat.models import decode, encode_solution, encode_turns
from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.chat_rendering import render
from heliostat.models.prompts.control_tokens import control_tokens
from heliostat.models.prompts.encoding import chat_messages
from heliostat.models.prompts.token_counts import prompt_sizes, solution_sizes
from heliostat.tasks import Task
from heliostat.tasks.task import by_the_book
from heliostat.train.model_bundle import ModelBundle, completion_budget
from heliostat.types import Problem, Prompt

_LONG_S = 5.0  # longer checks are reported


def check_encodable(
    recipe: Recipe, tasks: Sequence[Task], bundle: ModelBundle, note: Callable[[str], object] = str
) -> None:
    """Refuse problems and markers that would fail in some step; report the form of plain prompts for a chat model.

    Args:
        note: prints a line.

    Raises:
        ConfigError: an answer marker or a stop string holds a special token, which decoding leaves out.
        ValueError: a prompt or a solution cannot be encoded, or is too long; names its row.
    """
    began = time.monotonic()
    _check_markers(recipe, tasks, bundle.loaded)
    episodes, budget = recipe.environment.enabled, completion_budget(recipe)[1]
    for task in tasks:
        _check_prompts(recipe, task.heldout, bundle, budget)
        sampled = recipe.train.num_steps > 0
        sizes = _check_prompts(recipe, task.train, bundle, budget if sampled else 1)
        if recipe.warm_start.num_steps and not episodes:  # those of an oracle are checked when they are played
            _check_solutions(task, sizes, bundle)
        about_answers = () if episodes else _about_answers(recipe, task, bundle.loaded)
        for sentence in (*_about_form(task, bundle), *about_answers):
            note(sentence)
    seconds = time.monotonic() - began
    if seconds > _LONG_S:
        num = sum(len(task.train) + len(task.heldout) for task in tasks)
        note(f"{num} problems were encoded in {seconds:.0f} s to check that they fit")


def _check_prompts(recipe: Recipe, problems: Sequence[Problem], bundle: ModelBundle, budget: int) -> list[int]:
    """Refuse prompts that leave no room for ``budget`` more tokens; return all sizes, exact where they are large."""
    loaded, limit = bundle.loaded, completion_budget(recipe)[0]
    room = loaded.context_length - budget
    sizes = prompt_sizes(loaded, problems, recipe.model.chat, recipe.model.system, room)
    long = [index for index, size in enumerate(sizes) if size > room]
    if long:
        worst = max(long, key=lambda index: sizes[index])
        left = loaded.context_length - sizes[worst]
        raise ValueError(
            f"{problems[worst].described}: its prompt has {sizes[worst]} tokens, and with {limit} = {budget} "
            f"more it does not fit the context of model '{loaded.name}', which holds {loaded.context_length}; "
            f"{_count(len(long), len(problems), 'prompt')} too long: shorten or remove them, or set "
            f"{limit} to {left} or less"
        )
    return sizes


def _check_solutions(task: Task, sizes: Sequence[int], bundle: ModelBundle) -> None:
    """Refuse problems without a solution for the warm start, or with one that does not fit the context."""
    loaded = bundle.loaded
    for problem in task.train:
        unsolved = problem.solution is None and problem.answer is None and not problem.turns
        if unsolved and task.teacher is by_the_book:
            raise ValueError(
                f"{problem.described} has no solution and no answer to learn from; set warm_start.num_steps = 0"
            )
        if problem.turns:
            _check_turns(problem, bundle)
    alone = [(problem, size) for problem, size in zip(task.train, sizes, strict=True) if not problem.turns]
    texts = [problem.solution or problem.answer or "" for problem, _ in alone]
    room = [loaded.context_length - size for _, size in alone]
    for (problem, _), text, left, size in zip(alone, texts, room, solution_sizes(loaded, texts, room), strict=True):
        if size > left:
            prompt = bundle.prompt(problem)
            _check_fits(loaded, prompt, len(encode_solution(loaded, prompt, text)))


def _check_turns(problem: Problem, bundle: ModelBundle) -> None:
    """Refuse a worked conversation that the template or the context cannot hold; its number of bytes is tried first."""
    loaded, section = bundle.loaded, bundle.recipe.model
    asked = chat_messages(loaded, problem, section.chat, section.system)
    calls = any(turn.get("tool_calls") for turn in problem.turns)
    if asked is not None and not calls:
        text = render(loaded, problem, [*asked, *problem.turns], generation_prompt=False)
        if text.isascii() and len(text) < loaded.context_length:
            return
    for prompt, ids in encode_turns(loaded, problem, section.chat, section.system):
        _check_fits(loaded, prompt, len(ids))


def _check_fits(loaded: LoadedModel, prompt: Prompt, num: int) -> None:
    asked = len(prompt.token_ids)
    if asked + num > loaded.context_length:
        raise ValueError(
            f"{prompt.problem.described}: its prompt of {asked} and its worked solution of {num} tokens do not fit the "
            f"context of model '{loaded.name}', which holds {loaded.context_length}; shorten or remove it"
        )


def _check_markers(recipe: Recipe, tasks: Sequence[Task], loaded: LoadedModel) -> None:
    for task in tasks:
        if task.answer_after and (why := _lost(loaded, task.answer_after)):
            raise ConfigError(
                f"task.answer_after = {task.answer_after!r} of task '{task.name}': {why}, so that no verifier would "
                "ever see it; make it an ordinary token in the tokenizer's files ('special': false), or choose another "
                "marker"
            )
    for stop in recipe.rollout.stop:
        if (why := _lost(loaded, stop)) and not _ends_by_itself(loaded, stop):
            raise ConfigError(
                f"rollout.stop = {stop!r}: {why}, so that no completion would ever end there; make it an ordinary "
                "token in the tokenizer's files ('special': false), or choose another stop string"
            )


def _lost(loaded: LoadedModel, text: str) -> str:
    """Explain why ``text`` would be lost in decoding; empty where it would not."""
    special = next((token for token in control_tokens(loaded.tokenizer) if token in text), None)
    if special is not None:
        return f"{special!r} is a special token of model '{loaded.name}', which decoding leaves out"
    for around in (f"so{text}7", f"so {text} 7"):
        found = decode(loaded, loaded.tokenizer.encode(around, add_special_tokens=False))
        if text in found:
            return ""
    return f"the tokenizer of model '{loaded.name}' does not give it back ({found!r} comes back for {around!r})"


def _ends_by_itself(loaded: LoadedModel, text: str) -> bool:
    """Return whether the text is a single token that ends a completion anyway."""
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    return len(ids) == 1 and ids[0] in loaded.eos_ids


def _about_form(task: Task, bundle: ModelBundle) -> Iterator[str]:
    """Report the form of plain prompts for a model with a chat template."""
    plain = next((one for one in (*task.train, *task.heldout) if isinstance(one.prompt, str)), None)
    tokenizer, chat = bundle.loaded.tokenizer, bundle.recipe.model.chat
    if plain is None or not tokenizer.chat_template or (chat == "auto" and tokenizer.sep_token is not None):
        return
    if chat is False:
        yield (
            f"prompts of '{task.name}' are plain text and are given to the chat model as they stand, without its chat "
            "template; model.chat = true makes each a user's message"
        )
    elif chat == "auto":
        yield (
            f"prompts of '{task.name}' are plain text; each becomes one user's message of the model's chat template "
            "(model.chat = false gives them as they stand)"
        )


def _about_answers(recipe: Recipe, task: Task, loaded: LoadedModel) -> Iterator[str]:
    """Report right answers that exceed the length of a completion."""
    budget = recipe.rollout.max_new_tokens
    texts = [task.answer_after + one.answer for one in (*task.train, *task.heldout) if one.answer is not None]
    sizes = solution_sizes(loaded, texts, [budget] * len(texts))
    long = [size for size in sizes if size - 1 > budget]  # the end-of-sequence token need not be reached
    if long:
        yield (
            f"warning: {len(long)} of {len(texts)} right answers of '{task.name}' can never be given whole: they take "
            f"up to {max(long) - 1} tokens, and rollout.max_new_tokens is {budget}"
        )


def _count(num: int, total: int, noun: str) -> str:
    return f"{num} of {total} {noun}s {'is' if num == 1 else 'are'}"
