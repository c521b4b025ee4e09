"""Load a recipe's teacher and compare it with the policy, before anything is sampled.

    a folder or hub id   a second model in this process, frozen, in a dtype of its own
    self                 the policy at its weights of the moment, with a hint that only the teacher sees
    a server             its address; checked by a few requests (``server_checks``)

The teacher reads the policy's own token ids, so both need one tokenizer. It sees the policy's prompts, rendered once
with the policy's chat template.

Left out: its use in an update (``logprobs.teacher``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from heliostat.config import ConfigError, ModelSection, Recipe, TeacherSection, named_by
from heliostat.models import LoadedModel
from heliostat.models.prompts.token_counts import prompt_sizes
from heliostat.objectives.distillation import Distillation
from heliostat.rollout import Server
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.teacher import ModelTeacher, Teacher
from heliostat.train.model_bundle import ModelBundle, completion_budget, load_frozen
from heliostat.train.run_folder.folder import RunFolder
from heliostat.train.teachers.log_prob_cache import LogProbCache
from heliostat.train.teachers.scoring_routes import SCORING
from heliostat.train.teachers.served_log_probs import ServedLogProbs
from heliostat.train.teachers.served_teacher import ServedTeacher
from heliostat.train.teachers.server_checks import (
    PROBE,
    Fingerprint,
    Served,
    check_log_probs,
    check_tokenizer,
    fingerprint_of,
    room_of,
)
from heliostat.types import Message, Problem, Prompt


def open_teacher(
    recipe: Recipe,
    bundle: ModelBundle,
    runtime: Runtime,
    problems: Sequence[Problem],
    folder: RunFolder | None = None,
) -> Teacher | None:
    """Load the recipe's teacher, or check its server; ``None`` if it has none, or no steps to teach in.

    Args:
        problems: those of training, which have to fit the teacher's context with its hints.
        folder: keeps what a server says, and its fingerprint; ``None``: neither is kept.

    Raises:
        ConfigError: the model cannot be loaded, has another tokenizer or too short a context, is another than before,
            or a problem has no hint; or the server cannot be used.
        ValueError: a prompt with its hint does not fit the policy's context.
    """
    section = recipe.teacher
    if not section.enabled or recipe.train.num_steps == 0:
        return None
    distillation = Distillation(kind=section.kind, weight=section.weight, beta=section.beta)
    if runtime.sharded and distillation.needs_logits:
        raise ConfigError(
            f"teacher.kind = '{section.kind}' needs the whole head of both models on every rank, which sharding "
            "avoids; set teacher.kind = 'sampled', or distributed.placement = 'replicated'"
        )
    hinted = _hinted(bundle, section)
    seen = [_with_hint(problem, section) for problem in problems]
    if section.url:
        served = _served(section)
        if (room := room_of(served)) is not None:
            _check_room(recipe, served.model, room, bundle.loaded, seen)
        check_tokenizer(served, bundle.loaded)
        check_log_probs(served, bundle.loaded)
        if folder is not None:
            _check_fingerprint(folder, served, fingerprint_of(served, bundle.loaded))
        steps = recipe.train.checkpoint_every * recipe.rollout.prompts_per_step * recipe.rollout.group_size
        cache = LogProbCache(steps, None if folder is None else folder.teacher_log_probs, runtime.rank)
        log_probs = ServedLogProbs(served.server, served.routes, served.model, cache, section.num_requests)
        return ServedTeacher(distillation, section.alone, hinted, log_probs=log_probs)
    policy = _in_process(recipe, bundle, runtime)
    _check_room(recipe, policy.loaded.name, policy.loaded.context_length, bundle.loaded, seen)
    return ModelTeacher(distillation, section.alone, hinted, policy=policy)


def _in_process(recipe: Recipe, bundle: ModelBundle, runtime: Runtime) -> Policy:
    """Load the teacher's own model, or take the policy's."""
    section = recipe.teacher
    if section.is_self:
        return Policy(bundle.loaded, recipe.rollout.temperature, recipe.train.shared_prompt)
    try:
        policy = load_frozen(recipe, ModelSection(path=section.path, dtype=section.dtype), runtime)
    except ConfigError as error:
        raise named_by("teacher.path", error) from error
    _compare_tokenizers(policy.loaded, bundle.loaded)
    return policy


def _served(section: TeacherSection) -> Served:
    key_name = section.key_name or f"{section.engine.upper()}_API_KEY"
    server = Server(
        section.url.rstrip("/"),
        section.timeout_s,
        section.retries,
        os.environ.get(key_name, ""),
        key_name=key_name,
        title="teacher",
        url_setting="teacher.url",
    )
    return Served(server, SCORING[section.engine], section.model)


def _check_fingerprint(folder: RunFolder, served: Served, own: Fingerprint) -> None:
    """Refuse another teacher than the run has had so far, by its log-probabilities of a probe."""
    stored = folder.keep_teacher({"teacher": served.model, "ids": own.ids, "log_probs": own.values})
    if not own.is_of(Fingerprint(tuple(stored["ids"]), tuple(stored["log_probs"]))):
        raise ConfigError(
            f"{served.name} is not the teacher that this run has had so far: it gives other probabilities to the same "
            "tokens; serve the earlier one, or choose another folder with --run"
        )


def describe_teacher(section: TeacherSection, teacher: Teacher) -> str:
    """Describe in a line the teacher, and whether rewards train too."""
    what = "the policy itself" if section.is_self else teacher.described
    sees = "" if section.hint == "none" else f", which sees each problem's {section.hint}"
    rewards = "rewards are only measured (teacher.alone)" if section.alone else "its distance is added to the objective"
    return f"teacher: {what}{sees}; {section.kind}; {rewards}"


def _hinted(bundle: ModelBundle, section: TeacherSection) -> Callable[[Prompt], Prompt]:
    """Return the map from the policy's prompts to the teacher's; a given prefix stays."""
    known: dict[str, tuple[int, ...]] = {}

    def of(prompt: Prompt) -> Prompt:
        if section.hint == "none":
            return prompt
        problem = _with_hint(prompt.problem, section)
        key = f"{problem.task}/{problem.problem_id}"
        if key not in known:
            known[key] = bundle.prompt(problem).token_ids
        return replace(prompt, token_ids=known[key])

    return of


def _with_hint(problem: Problem, section: TeacherSection) -> Problem:
    """Return the problem as the teacher sees it.

    Raises:
        ConfigError: it has nothing to hint at.
    """
    if section.hint == "none":
        return problem
    hint = {"answer": problem.answer, "solution": problem.solution}[section.hint]
    if hint is None:
        raise ConfigError(f"{problem.described} has no {section.hint}, which teacher.hint = '{section.hint}' needs")
    text = section.hint_text.replace("{hint}", hint)
    prompt: str | tuple[Message, ...]
    if isinstance(problem.prompt, str):
        prompt = problem.prompt + text
    else:
        last = problem.prompt[-1]
        prompt = (*problem.prompt[:-1], {**last, "content": last["content"] + text})
    return replace(problem, prompt=prompt, place=f"{problem.place} with its hint".strip())


def _compare_tokenizers(teacher: LoadedModel, policy: LoadedModel) -> None:
    """Refuse a teacher that would read other tokens than the policy wrote."""
    theirs, ours = teacher.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs != ours:
        token = min(set(theirs.items()) ^ set(ours.items()), key=lambda pair: (pair[1], pair[0]))[0]
        described = f"token {token!r} has id {theirs.get(token)} there and {ours.get(token)} here"
    elif teacher.tokenizer.encode(PROBE) != policy.tokenizer.encode(PROBE):
        described = "equal vocabularies, but they cut a text into other tokens"
    else:
        return
    raise ConfigError(
        f"teacher '{teacher.name}' has another tokenizer than model '{policy.name}' ({described}), so it cannot read "
        "the policy's token ids; choose a teacher of the same family"
    )


def _check_room(recipe: Recipe, name: str, context: int, policy: LoadedModel, problems: Sequence[Problem]) -> None:
    """Refuse problems that do not fit the teacher's context together with a completion."""
    limit, budget = completion_budget(recipe)
    room = context - budget
    sizes = prompt_sizes(policy, problems, recipe.model.chat, recipe.model.system, room)
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    if sizes[worst] > room:
        raise ConfigError(
            f"{problems[worst].described}: the teacher's prompt has {sizes[worst]} tokens, and with {limit} = {budget} "
            f"more it does not fit the context of teacher '{name}', which holds {context}; shorten the problem or its "
            "hint"
        )
