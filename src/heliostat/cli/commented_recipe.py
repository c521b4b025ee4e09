"""The text of a recipe for a proposed task: the settings that matter, each with a comment on its value.

The text depends on its arguments alone, so that the same data gives the same file.

Left out: guessing (``tasks.guessing``), and the results of a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tomli_w

if TYPE_CHECKING:
    from heliostat.tasks.guessing.proposal import Proposal

TINY, SMOLLM2 = "tiny", "smollm2-135m"
_OWN_FUNCTION = "my_reward:score"
_MAX_LABELS = 8  # labels that a prompt lists
_MAX_CONTEXT = 2048  # of the tiny model; longer prompts make its steps slow


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in tokens, as far as the model's tokenizer is on this machine.

    Attributes:
        prompt: of the longest prompt; ``None``: not counted.
        answer: of the longest answer or worked solution; without a tokenizer, a guess.
        context: tokens that fit the model's context; ``None``: unknown.
        num_long: prompts that leave no room for an answer.
        first_long: the place of the first of them; empty: none.
    """

    prompt: int | None
    answer: int
    context: int | None
    num_long: int = 0
    first_long: str = ""

    @property
    def budget(self) -> int:
        """Tokens for a completion: an answer half as long again as the longest, in steps of 8."""
        return 8 * -(-(self.answer * 3 // 2 + 2) // 8)


@dataclass(frozen=True, slots=True)
class Line:
    """One setting with its comment."""

    key: str
    value: Any
    comment: str = ""

    def __str__(self) -> str:
        """Return the line of the TOML file."""
        return f"{self.key} = {as_toml(self.value)}" + (f"  # {self.comment}" if self.comment else "")


def as_toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def recipe_text(proposal: Proposal, source: str, path: str, model: str, lengths: Lengths) -> str:
    """Return the text of a recipe.

    Args:
        source: the data as it was named on the command line.
        path: the data as the recipe names it.
        model: ``model.path``.
        lengths: of the prompts and answers.
    """
    training = _tiny_training(proposal, lengths) if model == TINY else _pretrained_training(proposal, lengths)
    sections = {"model": _model(model, lengths), "task": [*_task(proposal, path, model)], **training}
    head = (
        f"# Written by heliostat init for {_one_line(source)}.\n"
        "# Settings that are not here keep their defaults; heliostat train --help lists them.\n"
    )
    blocks = [f"[{name}]\n" + "\n".join(map(str, lines)) + "\n" for name, lines in sections.items() if lines]
    return "\n".join([head, *blocks])


def context_of(lengths: Lengths) -> int | None:
    """Return the context that the tiny model needs, if it is not its default."""
    if lengths.prompt is None or lengths.context is None:
        return None
    needed = lengths.prompt + lengths.budget + 40
    if needed <= lengths.context:
        return None
    return min(_MAX_CONTEXT, 256 * -(-needed // 256))


def _model(model: str, lengths: Lengths) -> list[Line]:
    if model != TINY:
        dtype = Line("dtype", "float32", "auto: bfloat16 where the machine multiplies it faster, about twice")
        path = Line("path", model, "another: a Hugging Face folder or hub id, smollm2-135m, or tiny")
        return [path, dtype] if model == SMOLLM2 else [path]
    lines = [
        Line("path", TINY, "random weights, trained in minutes; a pretrained one: smollm2-135m, a folder, a hub id")
    ]
    if context := context_of(lengths):
        lines.append(Line("settings", {"context_length": context}, f"the longest prompt has {lengths.prompt} tokens"))
    return lines


def _task(proposal: Proposal, path: str, model: str) -> Iterator[Line]:
    settings, columns = dict(proposal.settings), proposal.columns
    yield Line("name", "file")
    yield Line("path", path, f"{proposal.num_rows} rows")
    comments = {
        "prompt_column": columns.why_prompt,
        "answer_column": columns.why_answer,
        "solution_column": "worked solutions, which the warm start shows",
        "answer_turn": "the turns before it are the prompt",
        "answer_after": "the answer follows this, in the data and in what the model writes",
        "on_missing": "rows without a prompt or an answer are left out",
        "num_heldout": "to measure on; no question is in both parts",
    }
    sizes = [(key, settings.pop(key)) for key in ("num_train", "num_heldout")]
    for key, value in settings.items():
        yield Line(key, value, comments.get(key, "as asked"))
    if "template" not in settings and model != TINY and (hint := _hint(proposal)):
        yield Line("template", "{question}\n" + hint, "tells the model in which form to answer")
    yield from _verifiers(proposal)
    for key, value in sizes:
        yield Line(key, value, comments.get(key, ""))
    if proposal.others:
        yield Line("# template", "{question} {" + proposal.others[0] + "}", "a prompt with another column in it")


def _verifiers(proposal: Proposal) -> Iterator[Line]:
    if proposal.verifier is None:
        yield Line("verifiers", [{"name": _OWN_FUNCTION}], "no built-in one fits: write my_reward.py next to this file")
        yield Line("shaped", True, "partial scores are rewards too; a success is a score of 1")
        return
    chosen = proposal.chosen
    yield Line("verifiers", [proposal.verifier], chosen.evidence if chosen else "as asked")


def _hint(proposal: Proposal) -> str:
    """Return the sentence that tells a pretrained model in which form to answer; empty: none is known."""
    name = None if proposal.verifier is None else proposal.verifier["name"]
    if marker := proposal.settings.get("answer_after"):
        return f"Think step by step, then write '{_escaped(marker.strip())}' and the answer."
    if name == "numeric":
        return "Answer with the number alone."
    if name == "math":
        return r"Put the final answer into \boxed{{}}."
    labels = sorted({str(problem.answer) for problem in proposal.problems})
    if name == "exact" and len(labels) <= _MAX_LABELS:
        return f"Answer with one of: {_escaped(', '.join(labels))}."
    return "Answer with as few words as possible." if name == "exact" else ""


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _tiny_training(proposal: Proposal, lengths: Lengths) -> dict[str, list[Line]]:
    num_train = len(proposal.task.train)
    has_answers = bool(proposal.columns.answer)
    num_steps = max(30, 10 * (12 * 16 // max(16, lengths.budget)))  # long answers take longer
    return {
        "run": [Line("num_threads", 1, "a model this small is slower with more; 0: all CPUs")],
        "warm_start": [
            Line("num_steps", 300, "learns from the answers first; where nothing is solved, nothing can be reinforced"),
            Line("batch_size", min(32, num_train)),
            Line("eval_every", 25, "steps between looks at the held-out problems"),
            Line(
                "stop_at", _half_way(proposal), "ends early at this share of solved ones, so that some is left to learn"
            ),
        ]
        if has_answers
        else [],
        "rollout": [
            Line("prompts_per_step", min(32, num_train), "problems of one step"),
            Line("group_size", 8, "answers to each of them, compared with each other"),
            _budget(lengths),
        ],
        "objective": [Line("tau", 0.5, "weight of staying near the model before a step; the default is 0.2")],
        "optimizer": [Line("lr", 2e-4, "a small model takes longer steps; the default is 1e-4")],
        "train": [
            Line("num_steps", num_steps, "some minutes on a laptop"),
            Line("updates_per_step", min(2, num_train), "each batch of answers is used twice"),
        ],
        "eval": [
            Line("every", num_steps // 5, "steps between looks at the held-out problems"),
            *_num_problems(proposal, 100),
        ],
    }


def _pretrained_training(proposal: Proposal, lengths: Lengths) -> dict[str, list[Line]]:
    num_train = len(proposal.task.train)
    warm = [
        Line("num_steps", 5, "shows the form of an answer; remove this section if the model knows it already"),
        Line("batch_size", min(8, num_train)),
        Line("lr", 4e-5),
    ]
    return {
        "warm_start": warm if proposal.columns.answer else [],
        "rollout": [
            Line("prompts_per_step", min(8, num_train), "problems of one step; few, for a machine without a GPU"),
            Line("group_size", 8, "answers to each of them, compared with each other"),
            _budget(lengths),
        ],
        "optimizer": [Line("lr", 2e-5), Line("warmup_steps", 2)],
        "train": [
            Line("num_steps", 20, "more for better results"),
            Line("tokens_per_microbatch", 2048, "less memory; the default is 8192"),
        ],
        "eval": [
            Line("every", 5, "steps between looks at the held-out problems"),
            *_num_problems(proposal, 50),
            Line("final_samples", 2, "answers to each held-out problem before and after training"),
        ],
    }


def _half_way(proposal: Proposal) -> float:
    """Return the success halfway between always giving the commonest answer and always being right."""
    answers = Counter(problem.answer for problem in proposal.problems)
    return round(0.5 + answers.most_common(1)[0][1] / len(proposal.problems) / 2, 2)


def _budget(lengths: Lengths) -> Line:
    counted = "about " if lengths.prompt is None else ""
    return Line("max_new_tokens", lengths.budget, f"the longest answer in the data has {counted}{lengths.answer}")


def _num_problems(proposal: Proposal, most: int) -> list[Line]:
    num = len(proposal.task.heldout)
    return [Line("num_problems", most, f"of {num}, chosen once")] if num > most else []


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def reward_template(proposal: Proposal) -> str:
    """Return the text of a reward function to begin with: the share of words that a text has in common with the answer.

    Columns inside columns, and the answers of chats, are not passed by name; such a function looks at the text alone.
    """
    answer, has_messages = proposal.columns.answer, not isinstance(proposal.problems[0].prompt, str)
    text = 'completion[-1]["content"]' if has_messages else "completion"
    if answer not in proposal.problems[0].columns:
        return (
            "def score(prompts, completions, **columns):\n"
            "    rewards = []\n"
            "    for completion in completions:\n"
            f"        rewards.append(float(len({text}.split()) < 50))  # 1.0 is full marks; put your measure here\n"
            "    return rewards\n"
        )
    return (
        "def score(prompts, completions, **columns):\n"
        "    rewards = []\n"
        f"    for completion, right in zip(completions, columns[{answer!r}]):\n"
        f"        said, wanted = set({text}.lower().split()), set(str(right).lower().split())\n"
        "        rewards.append(len(said & wanted) / len(said | wanted))  # 1.0 is full marks; put your measure here\n"
        "    return rewards\n"
    )
