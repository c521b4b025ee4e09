"""A whole run with adapters: it survives a restart bit for bit, and leaves a plain model and an adapter behind."""

import shutil

import torch
from peft import PeftModel

from heliostat.config import ModelSection, load_recipe
from heliostat.models import load_model
from heliostat.train import run_recipe
from tests.promises import small

SHORT = {
    "lora.rank": 4,
    "warm_start.num_steps": 6,
    "train.num_steps": 4,
    "train.checkpoint_every": 2,
    "eval.every": 0,
}


def test_a_run_with_adapters(tmp_path):
    text = small.write_recipe(tmp_path).read_text().replace('"pmd-mean"\ntau = 0.2', '"grpo"\nkl_ref = 0.01')
    (tmp_path / "adapted.toml").write_text(text)
    recipe = load_recipe(str(tmp_path / "adapted.toml"), SHORT)
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "finished", result.reason
    base = load_model(recipe.model, recipe.run.seed)
    final = load_model(ModelSection(path=str(tmp_path / "run" / "model"), dtype="float32"), 0)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        start, reached = base.model(input_ids=ids).logits, final.model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base.model, tmp_path / "run" / "adapter")(input_ids=ids).logits
    assert torch.allclose(adapted, reached, atol=1e-5)
    assert not torch.allclose(start, reached, atol=1e-3)
    whole = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    kept = (tmp_path / "run" / "checkpoints" / "step_000004" / "model.safetensors").stat().st_size
    assert kept < whole / 2, "a checkpoint keeps what is trained"

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_000004")
    shutil.rmtree(tmp_path / "again" / "model")
    (tmp_path / "again" / "summary.json").unlink()
    assert run_recipe(recipe, tmp_path / "again", "small").status == "finished"
    models = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "again")]
    assert models[0] == models[1]
    assert small.metrics(tmp_path / "again") == small.metrics(tmp_path / "run")
