"""A whole run that takes seconds: one-digit sums from a file, a 60,000-parameter model, a few steps."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from heliostat.config import Recipe, load_recipe

RECIPE = """
# One-digit sums, learned by a very small model.
[run]
num_threads = 1

[model]
path = "tiny"
settings = {{hidden_size = 48, intermediate_size = 96, num_layers = 2, num_heads = 2, num_kv_heads = 2}}

[task]
name = "file"
path = "{data}"
answer_column = "answer"
verifiers = [{{name = "numeric"}}]
num_train = 80
num_heldout = 20

[warm_start]
num_steps = 60
batch_size = 32
lr = 5e-3

[rollout]
prompts_per_step = 8
group_size = 4
max_new_tokens = 4

[objective]
name = "pmd-mean"
tau = 0.2

[optimizer]
lr = 1e-3

[train]
num_steps = 8
updates_per_step = 2
checkpoint_every = 3

[eval]
every = 4
num_problems = 20
final_samples = 2
num_transcripts = 3
"""


@dataclass(frozen=True)
class Weights:
    """What the small run trains: weights of a type, all of them or adapters."""

    dtype: str = "auto"
    lora_rank: int = 0

    def __str__(self) -> str:
        return self.dtype + ("-lora" if self.lora_rank else "")

    def into(self, recipe: str) -> str:
        """The text of a recipe, with them."""
        changed = recipe if self.dtype == "auto" else recipe.replace("[model]\n", f'[model]\ndtype = "{self.dtype}"\n')
        if not self.lora_rank:
            return changed
        # Adapters leave the embedding and its tied head alone, which must be large enough for a certain token.
        changed = changed.replace("settings = {", "settings = {init_std = 0.2, ")
        return changed + f"\n[lora]\nrank = {self.lora_rank}\nalpha = 32\n"


EVERY_WEIGHTS = tuple(Weights(dtype, rank) for rank in (0, 4) for dtype in ("float32", "bfloat16"))
PLAIN_WEIGHTS = tuple(weights for weights in EVERY_WEIGHTS if not weights.lora_rank)
weights = Weights()
"""Of the test that is running (the fixture ``weights``); as the recipe has them where it does not ask."""


def digits(completions, **columns):
    """A reward that a fresh model earns a part of: the share of digits in what it says."""
    return [sum(one.isdigit() for one in text) / max(1, len(text)) for text in completions]


def shaped(recipe: str) -> str:
    """The text of a recipe, with this reward: every batch has a signal, however little has been learned."""
    theirs, ours = '[{name = "numeric"}]', f'[{{name = "{__name__}:{digits.__name__}"}}]\nshaped = true'
    return recipe.replace(theirs, ours)


def write_problems(path: Path) -> Path:
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path) -> Path:
    data = write_problems(folder / "sums.jsonl")
    path = folder / "small.toml"
    path.write_text(weights.into(RECIPE.format(data=data)))
    return path


def recipe(folder: Path, **overrides: object) -> Recipe:
    return load_recipe(str(write_recipe(folder)), {key.replace("__", "."): value for key, value in overrides.items()})


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "heliostat", *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def run(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), env=environment(), text=True, capture_output=True, timeout=240, **kwargs)


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*args), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def metrics(folder: Path) -> list[dict[str, object]]:
    """Metric lines without the numbers that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "speed/"))} for line in lines]
