"""A whole run with adapters: it survives a restart bit for bit, and leaves a plain model and an adapter behind."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from heliostat.config import ConfigError, ModelSection, load_recipe
from heliostat.models import load_model, lora
from heliostat.models.lora import add_adapters
from heliostat.train import run_recipe
from heliostat.train.console.interrupt import Interrupted
from heliostat.train.trainer import Trainer
from tests.support import small

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
    for folder in ("model", "adapter"):
        card = (tmp_path / "run" / folder / "README.md").read_text()
        assert result.after.described in card
        assert str(tmp_path) not in card

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_000004")
    shutil.rmtree(tmp_path / "again" / "model")
    (tmp_path / "again" / "summary.json").unlink()
    assert run_recipe(recipe, tmp_path / "again", "small").status == "finished"
    for name in ("model/model.safetensors", "model/README.md", "adapter/README.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert small.metrics(tmp_path / "again") == small.metrics(tmp_path / "run")


@pytest.mark.parametrize("layers", [["embed_tokens"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedding_and_head_come_back_from_a_run(tmp_path, layers, dtype):
    options = {"lora.layers": layers, "model.dtype": dtype, "warm_start.lr": 0.05, "train.num_steps": 0}
    recipe = load_recipe(str(small.write_recipe(tmp_path)), SHORT | options)
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "finished", result.reason
    base = load_model(recipe.model, recipe.run.seed)
    trained = load_model(recipe.model, recipe.run.seed)
    add_adapters(trained.model, recipe.lora, recipe.run.seed)
    state = load_file(tmp_path / "run" / "checkpoints" / "step_000000" / "model.safetensors")
    assert not trained.model.load_state_dict(state, strict=False).unexpected_keys
    saved = load_model(ModelSection(path=str(tmp_path / "run" / "model"), dtype=dtype), 0)
    ids = torch.tensor([base.tokenizer.encode("3 + 4 =")])
    with torch.no_grad():
        start, want, got = (each.model(input_ids=ids).logits.float() for each in (base, trained, saved))
    moved = (want - start).norm()
    assert moved > 0.05 * start.norm(), "the adapters were trained"
    assert (got - want).norm() < (1e-4 if dtype == "float32" else 0.15) * moved


def test_a_run_whose_model_does_not_come_back_is_not_finished_and_loses_nothing(tmp_path):
    recipe = load_recipe(str(small.write_recipe(tmp_path)), SHORT)
    right = lora.merged
    calls = []

    def wrong_after_training(model, weights):
        """Right in the trial, and of the base alone from then on."""
        calls.append(1)
        return right(model, weights) if len(calls) == 1 else lora.unadapted(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heliostat.models.saving.merged", wrong_after_training)
        result = run_recipe(recipe, tmp_path / "run", "small")
    assert (result.status, result.exit_code) == ("failed", 1)
    assert "the saved model's logits differ from the trainer's by" in result.reason
    assert "tries again" in result.reason
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["model"]) == ("failed", None)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "checkpoints" / "step_000004").is_dir()

    assert run_recipe(recipe, tmp_path / "run", "small").status == "finished"
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_resumed_run_tries_its_export_again_and_loses_nothing(tmp_path):
    recipe = load_recipe(str(small.write_recipe(tmp_path)), SHORT)
    made = Trainer.step

    def stop_at_the_second(self, step):
        if step == 2:
            raise Interrupted
        return made(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_the_second)
        assert run_recipe(recipe, tmp_path / "run", "small").status == "interrupted"
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heliostat.models.saving.merged", lambda model, weights: lora.unadapted(weights))
        with pytest.raises(ConfigError, match="nothing more was trained, since the model of this run could not be"):
            run_recipe(recipe, tmp_path / "run", "small")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
    assert run_recipe(recipe, tmp_path / "run", "small").status == "finished"


def test_modules_to_save_without_adapters_are_refused(tmp_path):
    recipe = load_recipe(str(small.write_recipe(tmp_path)), {"lora.modules_to_save": ["lm_head"]})
    with pytest.raises(ConfigError, match=r"only used with lora\.rank above 0"):
        run_recipe(recipe, tmp_path / "run", "small")


def test_a_model_that_could_not_be_saved_is_refused_before_anything_is_sampled(tmp_path):
    recipe = load_recipe(str(small.write_recipe(tmp_path)), SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heliostat.models.saving.merged", lambda model, weights: lora.unadapted(weights))
        with pytest.raises(ConfigError, match="nothing was trained, since the model of this run could not be saved"):
            run_recipe(recipe, tmp_path / "run", "small")
        assert not (tmp_path / "run").exists()
        patch.setattr("heliostat.train.trainer.Trainer.run", lambda self: (_ for _ in ()).throw(Interrupted("enough")))
        skipping = load_recipe(str(small.write_recipe(tmp_path)), SHORT | {"train.try_export": False})
        assert run_recipe(skipping, tmp_path / "skipped", "small").status == "interrupted", "the trial was left out"
