"""The promise: every optimizer can be named in a recipe, and a run with it trains, saves and continues."""

import pytest
import torch
from safetensors.torch import load_file

import heliostat
from heliostat.optim import optimizer_names
from tests.support import small

SMALL = {
    "warm_start.num_steps": 3,
    "rollout.prompts_per_step": 4,
    "train.num_steps": 3,
    "train.updates_per_step": 1,
    "train.checkpoint_every": 2,
    "eval.every": 0,
    "eval.final_samples": 1,
}
WEIGHTS = [small.Weights("float32"), small.Weights("bfloat16", lora_rank=4)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str, indirect=True)
@pytest.mark.parametrize("name", sorted(set(optimizer_names()) - {"adamw", "sgd"}))
def test_a_run_with_it_trains_and_continues(name, weights, tmp_path, dying):
    """Killed after its second step, bit for bit; in bfloat16 with all that the optimizer keeps in float32."""
    path = small.write_recipe(tmp_path)
    path.write_text(small.shaped(path.read_text()))
    overrides = {**SMALL, "optimizer.name": name, "optimizer.lr": 1e-3, "run.root": str(tmp_path)}
    if name == "reng" and weights.dtype == "bfloat16":
        overrides["optimizer.mode"] = "double-backward"
    for folder, left in (("whole", 0), ("killed", 3)):
        dying["left"] = left
        recipe = heliostat.load_recipe(str(path), {**overrides, "run.name": folder})
        if left:
            with pytest.raises(MemoryError):
                heliostat.post_train(recipe)
        heliostat.post_train(recipe)
    lines = [line for line in small.metrics(tmp_path / "whole") if line["step"] > 0]
    assert len(lines) == 3
    assert all(line["optim/bad_steps"] == 0 for line in lines)
    assert any(line["policy/max_log_ratio"] > 0 for line in lines), "the weights moved"
    assert small.metrics(tmp_path / "killed") == small.metrics(tmp_path / "whole")
    saved = [load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("whole", "killed")]
    assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    kept = torch.load(tmp_path / "whole" / "checkpoints" / "step_000003" / "optimizer.pt", weights_only=True)
    tensors = [t for own in kept["state"].values() for t in own.values() if isinstance(t, torch.Tensor)]
    assert {t.dtype for t in tensors if t.is_floating_point()} <= {torch.float32, torch.float64}
