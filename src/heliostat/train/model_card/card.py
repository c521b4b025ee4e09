"""Build a model card: front matter for the hub, result, method, data, a snippet that generates, limits, versions.

A card is built from known fields. Local files appear by their last component, and free text (system messages,
templates, error messages) not at all, so that no folder or machine gets into it. It has no date, so that a run that was
killed and continued ends with the same card.

Left out: writing the files (``run_folder.export``).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from platform import python_version
from typing import Any

from heliostat.models.saving import CARD_HERE, CARD_MARK
from heliostat.train.evaluation.evaluate import Evaluation, compare
from heliostat.train.model_card.facts import BaseModel, CardFacts, base_model
from heliostat.train.model_card.names import id_in_code, name_in_code, plain_name, table
from heliostat.train.model_card.settings_tables import data_table, hub_data, method_table
from heliostat.train.run_folder.export import Cards

QUESTION = "2 + 3 ="


def build_cards(facts: CardFacts) -> Cards:
    """Build the card of the merged model, and that of its adapter if the run trained one."""
    base = base_model(facts.recipe)
    adapter = _card(facts, base, is_adapter=True) if facts.recipe.lora.rank else ""
    return Cards(model=_card(facts, base, is_adapter=False), adapter=adapter)


def _card(facts: CardFacts, base: BaseModel, *, is_adapter: bool) -> str:
    tasks = " and ".join(map(plain_name, facts.after.by_task()))
    sections = (
        _front_matter(facts, base, is_adapter),
        CARD_MARK,
        f"# {base.name}, trained on {tasks}",
        _summary(facts, base, is_adapter),
        "## Held-out results",
        _results(facts),
        "## Method",
        method_table(facts),
        "## Data",
        data_table(facts),
        "## How to load",
        _snippet(facts, base, is_adapter),
        "## Limits of the claim",
        "\n".join(f"- {limit}" for limit in _limits(facts, base)),
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in _versions(facts).items()),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, base: BaseModel, is_adapter: bool) -> str:
    from huggingface_hub import ModelCardData

    hub_id = base.hub_id if is_adapter else base.hub_id or base.origin
    relation: dict[str, Any] = {"base_model_relation": "adapter" if is_adapter else "finetune"} if hub_id else {}
    sets = dict.fromkeys(found for section in facts.recipe.task if (found := hub_data(section)) is not None)
    kinds = _kinds(facts)
    data = ModelCardData(
        base_model=hub_id,
        datasets=list(sets) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["heliostat", *kinds],
        **relation,
    )
    return f"---\n{data.to_yaml()}\n---"


def _kinds(facts: CardFacts) -> tuple[str, ...]:
    """Return the card's tags for the way of training."""
    teacher = facts.recipe.teacher
    if not facts.is_post_trained:
        return ("sft",)
    by_rewards = ("reinforcement-learning", facts.recipe.objective.name)
    return (*(() if teacher.enabled and teacher.alone else by_rewards), *(("distillation",) * teacher.enabled))


def _summary(facts: CardFacts, base: BaseModel, is_adapter: bool) -> str:
    how = "post-trained with Heliostat" if facts.is_post_trained else "trained on worked solutions with Heliostat"
    what = "A low-rank adapter (PEFT) for" if is_adapter else "A plain transformers model, made from"
    merged = ", its adapters merged" if facts.recipe.lora.rank and not is_adapter else ""
    origin = f" That run began with {id_in_code(base.origin)}." if base.origin else ""
    return f"{what} {base.shown}, {how}{merged}; the weights are {facts.dtype}.{origin}"


def _results(facts: CardFacts) -> str:
    after, earlier = facts.after, facts.before.by_task() if facts.before else {}
    rows = [_result(name_in_code(task), earlier.get(task), part) for task, part in after.by_task().items()]
    if len(rows) > 1:
        rows.append(_result("all", facts.before, after))
    head = (
        "base model" if facts.is_before_base else "after the warm start",
        "after post-training" if facts.is_post_trained else "after supervised training",
    )
    return f"{table(('task', 'problems', *head), rows)}\n\n{' '.join(_sentences(facts))}"


def _result(task: str, before: Evaluation | None, after: Evaluation) -> tuple[str, ...]:
    return task, str(len(after.results)), before.described if before else "unknown", after.described


def _sentences(facts: CardFacts) -> Iterator[str]:
    before, after = facts.before, facts.after
    samples = min(result.num_samples for result in after.results)
    yield (
        f"Pass@1 from {samples} completions of each problem at temperature {facts.recipe.rollout.temperature:g}, with "
        "95% intervals over problems."
    )
    if before is not None:
        pair = compare(before, after)
        low, high = pair.ci95
        yield f"Change on the same problems: {pair.difference:+.1%}, 95% interval [{low:+.1%}, {high:+.1%}]."
        if not pair.significant:
            yield "That interval includes 0, so no change was shown."
    if after.greedy is not None:
        was = f"{before.greedy:.1%} before and " if before is not None and before.greedy is not None else ""
        yield f"Greedy decoding solves {was}{after.greedy:.1%} after."
    if not facts.is_before_base:
        yield "The base model itself was not measured."


def _snippet(facts: CardFacts, base: BaseModel, is_adapter: bool) -> str:
    lines = _loading_adapter(base) if is_adapter else _LOADING
    lines = [*lines, *_asking(facts), *_generating(facts)]
    return "\n".join(("```python", *lines, "```"))


_LOADING = [
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    CARD_HERE,
    "tokenizer = AutoTokenizer.from_pretrained(name)",
    "model = AutoModelForCausalLM.from_pretrained(name)",
]


def _loading_adapter(base: BaseModel) -> list[str]:
    known = f'base = "{base.hub_id}"' if base.hub_id else 'base = "the folder of the base model"  # see the limits'
    return [
        "from peft import PeftModel",
        *_LOADING[:2],
        known,
        _LOADING[2],
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), name)",
    ]


def _asking(facts: CardFacts) -> list[str]:
    if not facts.is_chat:
        return [f'inputs = tokenizer("{QUESTION}", return_tensors="pt")']
    kwargs = facts.recipe.model.chat_template_kwargs
    switches = [f", {key}={value}" for key, value in kwargs.items() if isinstance(value, bool) and key.isidentifier()]
    return [
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
        "inputs = tokenizer.apply_chat_template(",
        f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{"".join(switches)}',
        ")",
    ]


def _generating(facts: CardFacts) -> list[str]:
    recipe = facts.recipe
    length = recipe.environment.max_tokens_per_turn if recipe.environment.enabled else recipe.rollout.max_new_tokens
    sampled = f"max_new_tokens={length}, do_sample=True, temperature={recipe.rollout.temperature:g}, top_k=0"
    return [
        f"output = model.generate(**inputs, {sampled})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _limits(facts: CardFacts, base: BaseModel) -> Iterator[str]:
    recipe = facts.recipe
    yield (
        f"One run with one seed ({recipe.run.seed}): the intervals are over held-out problems, and say nothing about "
        "another run."
    )
    yield (
        "The held-out problems come from the same source as the training problems, and success means that the "
        "verifiers above accepted the answer. Other tasks, other formats and safety were not measured."
    )
    if base.is_rounded:
        yield "Training began with the published base weights rounded to 4 bits and back, not with the exact ones."
    if base.hub_id is None and recipe.lora.rank:
        yield "The adapter fits only the weights that it was trained on, and these are not on the hub."
    if recipe.model.system or any("template" in section.settings for section in recipe.task):
        yield "Prompts had further text around the question (a template or a system message), which is not shown here."
    if facts.findings:
        names = ", ".join(map(name_in_code, facts.findings))
        yield f"Findings of the guard that stood at the end of the run: {names}."


def _versions(facts: CardFacts) -> dict[str, str]:
    packages = ("heliostat", "torch", "transformers", "tokenizers", *(("peft",) if facts.recipe.lora.rank else ()))
    return {"Python": python_version()} | {package: version(package) for package in packages}
