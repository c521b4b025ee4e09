"""The tables of a model card that show a recipe: the method with its main settings, and the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from heliostat.config import Recipe, TaskSection, TeacherSection
from heliostat.train.model_card.facts import CardFacts, is_on_hub
from heliostat.train.model_card.names import id_in_code, is_choice, is_hub_id, name_in_code, plain_name, table


def method_table(facts: CardFacts) -> str:
    """Format the method and its main settings."""
    recipe = facts.recipe
    rows = [*_supervised(recipe), *(_post_training(recipe) if facts.is_post_trained else ())]
    if recipe.environment.enabled:
        names = ", ".join(map(name_in_code, filter(None, (recipe.environment.name, *recipe.environment.tools))))
        rows.append(("environment", f"{names}, at most {recipe.environment.max_turns} turns"))
    if recipe.lora.rank:
        rows.append(("adapters", f"LoRA of rank {recipe.lora.rank}, alpha {recipe.lora.alpha}"))
    prompts = "the tokenizer's chat template" if facts.is_chat else "plain text"
    rows += [("prompts", prompts), ("seed", str(recipe.run.seed))]
    return table(("setting", "value"), rows)


def data_table(facts: CardFacts) -> str:
    """Format the tasks with their sources; local files are named without their folders."""
    names, sections = list(facts.after.by_task()), facts.recipe.task
    rows = [
        (
            name_in_code(names[number]) if len(names) == len(sections) else str(number + 1),
            _source(section),
            str(section.num_train),
            str(section.num_heldout),
            ", ".join(verifier_names(section)) or "the source's own",
        )
        for number, section in enumerate(sections)
    ]
    return table(("task", "source", "training problems", "held-out problems", "verifiers"), rows)


def hub_data(section: TaskSection) -> str | None:
    """Return the hub id of a task's data set, if it is one: two names, and no file or folder here."""
    path = section.settings.get("path") if section.name == "file" else None
    if not isinstance(path, str) or "/" not in path or PurePath(path).suffix:
        return None
    return path if is_on_hub(path) else None


def verifier_names(section: TaskSection) -> Iterator[str]:
    """Yield the names of a task's verifiers as Markdown."""
    tables = section.settings.get("verifiers", ())
    for each in tables if isinstance(tables, list | tuple) else ():
        yield name_in_code(str(each.get("name", "")).removeprefix("given:"))


def _supervised(recipe: Recipe) -> Iterator[tuple[str, str]]:
    warm = recipe.warm_start
    if warm.num_steps:
        steps = f"at most {warm.num_steps}" if warm.stop_at < 1 else str(warm.num_steps)
        yield (
            "supervised steps",
            f"{steps}, each on {warm.batch_size} worked solutions; AdamW, learning rate {warm.lr:g}",
        )


def _post_training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    rollout, optimizer, train = recipe.rollout, recipe.optimizer, recipe.train
    budget = recipe.environment.max_tokens if recipe.environment.enabled else rollout.max_new_tokens
    if not (recipe.teacher.enabled and recipe.teacher.alone):
        yield "objective", _named(recipe.objective.name, recipe.objective.settings)
    if recipe.teacher.enabled:
        yield "teacher", _teacher(recipe.teacher)
    yield "optimizer", _named(optimizer.name, {"lr": optimizer.lr, **optimizer.settings})
    yield "learning rate", f"{optimizer.schedule} after {optimizer.warmup_steps} steps of warm-up"
    yield "steps", f"{train.num_steps}, updates in each: {train.updates_per_step}"
    yield (
        "rollouts of a step",
        f"{rollout.prompts_per_step} problems, {rollout.group_size} completions each, at most {budget} tokens, "
        f"temperature {rollout.temperature:g}",
    )
    if rollout.max_staleness:
        yield "staleness", f"rollouts are up to {rollout.max_staleness} steps old"
    if recipe.prefix.name != "none":
        yield "prefixes of stored solutions", _named(recipe.prefix.name, {"share": recipe.prefix.share})
    if recipe.guard.mode == "act":
        yield "guard", _named("act", {"actuator": recipe.guard.actuator})


def _teacher(section: TeacherSection) -> str:
    """Format the teacher; a local folder is not named."""
    shown = "the policy itself" if section.is_self else "a model on a server" if section.url else "a local model"
    if is_hub_id(section.path) and is_on_hub(section.path):
        shown = id_in_code(section.path)
    hint = {} if section.hint == "none" else {"hint": section.hint}
    return shown + _in_brackets({"kind": section.kind, "weight": section.weight, **hint})


def _source(section: TaskSection) -> str:
    if section.name != "file":
        settings = section.settings.get("settings")
        shown = id_in_code(section.name) if is_hub_id(section.name) else name_in_code(section.name)
        return shown + _in_brackets(settings if isinstance(settings, Mapping) else {})
    if (hub_id := hub_data(section)) is not None:
        return f"{id_in_code(hub_id)} on the hub"
    path = str(section.settings.get("path", ""))
    return "rows given in Python" if path.startswith("given:") else f"local data, {name_in_code(path)}"


def _named(name: str, settings: Mapping[str, Any]) -> str:
    return name_in_code(name) + _in_brackets(settings)


def _in_brackets(settings: Mapping[str, Any]) -> str:
    """Format numbers, switches and names of choices; nested tables and free text are left out."""
    known = {key: text for key, value in settings.items() if (text := _value(value))}
    return f" ({', '.join(f'{plain_name(key)} = {text}' for key, text in known.items())})" if known else ""


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) and is_choice(value) else ""
