"""What is raced: model files, prompts and a reward that both sides load, and the sizes of each workload.

The small models are Llama shapes with random weights. A share of their vocabulary counts as end of sequence, so
completions end after a geometric number of tokens, as answers do: nothing has to be trained first, and lengths vary.
Their reward is whether a completion contains a digit, which a random model does now and then and soon learns. SmolLM2
knows that from its second step on, and then nothing is left to learn from, so its reward is the share of vowels.

Left out: running anything (``sides``), and comparing (``race``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MEAN_ANSWER_TOKENS = 24
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int


SHAPES = {"5M": Shape(256, 704, 6, 4), "25M": Shape(512, 1376, 8, 8)}

PROMPT_TOKENS = {"short": 16, "long": 4 * MEAN_ANSWER_TOKENS, "prefix": 8 * MEAN_ANSWER_TOKENS}
"""Workloads by the length of their prompts; answers are alike in all."""


@dataclass(frozen=True)
class Entry:
    """One model on one workload."""

    model: str
    workload: str
    num_prompts: int = 8
    group_size: int = 8
    lr: float = 3e-4
    reward: str = "has_digit"

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.group_size


def has_digit(completions: Sequence[Any], **_: Any) -> list[float]:
    """1.0 for a completion with a digit in it; TRL's signature, which Heliostat takes too."""
    return [float(any(character.isdigit() for character in str(text))) for text in completions]


def vowel_share(completions: Sequence[Any], **_: Any) -> list[float]:
    """The share of vowels in a completion; it differs within nearly every group, so that all have signal."""
    texts = [str(completion) for completion in completions]
    return [sum(character in "aeiou" for character in text) / max(1, len(text)) for text in texts]


def write_model(name: str, folder: Path, seed: int = 0) -> Path:
    """The model's folder, made if it is not there: ``5M``, ``25M`` or ``smollm2-135m``."""
    target = folder / name
    if target.exists():
        return target
    from heliostat.config import ModelSection
    from heliostat.models import load_model, save_model

    if name not in SHAPES:
        save_model(load_model(ModelSection(path=name, dtype="float32"), seed), target)
        return target
    shape = SHAPES[name]
    settings = {**vars(shape), "num_kv_heads": shape.num_heads}
    loaded = load_model(ModelSection(path="tiny", settings=settings), seed)
    save_model(loaded, target)
    vocabulary = len(loaded.tokenizer)
    ids = np.random.default_rng(seed).permutation(np.arange(10, vocabulary))
    texts = loaded.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    wordless = [int(i) for i, text in zip(ids, texts, strict=True) if not any(c.isdigit() for c in text)]
    ends = sorted({loaded.eos_id, *wordless[: vocabulary // MEAN_ANSWER_TOKENS]})
    config = json.loads((target / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    return target


def write_prompts(entry: Entry, model: Path, folder: Path, num: int = 512, seed: int = 0) -> Path:
    """Prompts of about the workload's length in the model's tokens, one JSON object a line."""
    target = folder / f"{entry.model}-{entry.workload}.jsonl"
    if target.exists():
        return target
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    words = [
        "sum",
        "of",
        "the",
        "two",
        "terms",
        "and",
        "then",
        "some",
        "more",
        "numbers",
        "to",
        "add",
        "before",
        "the",
        "answer",
        "is",
        "given",
        "in",
        "full",
    ]
    rng = np.random.default_rng(seed)
    with target.open("w") as file:
        for number in range(num):
            text = f"{number}:"
            while len(tokenizer(text)["input_ids"]) < PROMPT_TOKENS[entry.workload]:
                text += " " + words[int(rng.integers(len(words)))]
            file.write(json.dumps({"prompt": text, "answer": "0"}) + "\n")
    return target
