"""The recipe of a published curve runs from end to end on Qwen3-0.6B's shape, with fewer layers and words."""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from heliostat.config import load_recipe
from heliostat.models.loading.tiny import tiny_tokenizer
from heliostat.scaling.catalog import CONFIGS
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe

RECIPE = "qwen3-0.6b-gsm8k"


@pytest.fixture
def one_layer(tmp_path):
    """A random model of the width, the heads and the tied embedding of Qwen3-0.6B."""
    shape = CONFIGS["qwen3-0.6b"] | {"num_hidden_layers": 1, "vocab_size": 520, "max_position_embeddings": 512}
    torch.manual_seed(0)
    config = Qwen3Config(**shape, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    folder = tmp_path / "qwen3"
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    tiny_tokenizer(512).save_pretrained(folder)
    return folder


def gsm8k(path, numbers):
    """Problems in the data set's form, whose answers hold a worked solution."""
    rows = [
        {"question": f"Ann has {a} eggs and buys {b} more. How many?", "answer": f"{a}+{b}={a + b}\n#### {a + b}"}
        for a in numbers
        for b in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_the_recipe_runs_in_the_shape_of_its_model(one_layer, tmp_path):
    smaller = {
        **{"model.path": str(one_layer), "task.subset": "", "task.heldout_split": ""},
        **{"task.path": gsm8k(tmp_path / "train.jsonl", range(9)), "task.num_train": 32, "task.num_heldout": 2},
        **{"task.heldout_path": gsm8k(tmp_path / "test.jsonl", range(20, 22)), "warm_start.num_steps": 1},
        **{"rollout.max_new_tokens": 40, "train.num_steps": 1, "eval.final_samples": 1, "eval.every": 0},
        **{"train.try_export": False, "run.num_threads": 1},
    }
    recipe = load_recipe(RECIPE, smaller)
    assert (recipe.rollout.prompts_per_step, recipe.rollout.group_size, recipe.objective.name) == (2, 16, "grpo")
    result = run_recipe(recipe, tmp_path / "run", "curve")
    assert result.status == "finished", result.reason
    last = list(read_metrics(result.folder / "metrics.jsonl"))[-1]
    assert last["step"] == 1
    assert last["length/max"] <= 40
    saved = Qwen3ForCausalLM.from_pretrained(result.folder / "model")
    assert saved.config.head_dim == 128
