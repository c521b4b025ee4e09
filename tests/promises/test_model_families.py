"""A model is 100% right on its own greedy continuations, computed one prompt at a time without a cache."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch

from heliostat.cli import main
from heliostat.models import decode, encode_problem
from heliostat.types import Problem
from tests.support.model_families import load_small

ROOT = Path(__file__).parents[2]
WORDS = ("red", "blue tree", "one and the", "", "a much longer list of words that goes on")
RECIPE = """
[model]
path = "{base}"
chat = false
dtype = "float32"
[task]
name = "file"
path = "{data}"
answer_column = "answer"
verifiers = [{{ name = "exact" }}]
num_train = 2
num_heldout = 10
[rollout]
max_new_tokens = 5
max_rows = 6
"""


@torch.no_grad()
def continuation(loaded, text):
    ids = list(encode_problem(loaded, Problem("p", "t", text), chat=False).context_ids)
    start = len(ids)
    while len(ids) < start + 5 and (len(ids) == start or ids[-1] not in loaded.eos_ids):
        ids.append(int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return decode(loaded, ids[start:])


@pytest.mark.parametrize("family", ["mpt", "gpt_neo", "deepseek_v3", "mamba"])
def test_eval_finds_a_model_right_about_itself(family, tmp_path):
    loaded = load_small(family, tmp_path)
    texts = [f"{index} {WORDS[index % 5]} say {index * 7} =" for index in range(40)]
    rows = [{"prompt": text, "answer": continuation(loaded, text)} for text in texts]
    rows = [row for row in rows if row["answer"].strip()]
    assert len(rows) >= 12
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out.json"
    recipe.write_text(RECIPE.format(base=tmp_path / family, data=data))
    command = ["eval", str(tmp_path / family), "--recipe", str(recipe), "--greedy", "--samples", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*command, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["models"][0]["greedy"] == 1.0


def test_the_page_is_the_sweeps_result():
    spec = importlib.util.spec_from_file_location("families_page", ROOT / "benchmarks" / "families" / "page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run python benchmarks/families/page.py --write"
