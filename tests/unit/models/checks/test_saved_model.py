"""Whatever is wrong with a saved model is seen when it is read back, and what rounding does is not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from heliostat.config import LoraSection, ModelSection
from heliostat.models import load_model, save_model
from heliostat.models.checks.saved_model import SavedDiffers, check_adapter, check_saved, median_gap, trainer_logits
from heliostat.models.lora import add_adapters, perturbed_adapters, save_adapter
from heliostat.models.saving import plain_state
from tests.support.checkpoints import FAMILIES, write_checkpoint
from tests.support.nano import NANO

PROMPTS = [(5, 6, 7), tuple(range(6, 60)), (300, 40, 500, 8, 9)]


@pytest.fixture
def loaded():
    return load_model(ModelSection(path="tiny", settings=NANO), 0)


@pytest.fixture
def saved(loaded, tmp_path):
    """A saved model, and a function that reads it back."""
    save_model(loaded, tmp_path / "model")

    def check():
        said = trainer_logits(loaded, PROMPTS)
        return check_saved(loaded, tmp_path / "model", plain_state(loaded.model), PROMPTS, said)

    return tmp_path / "model", check


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_comes_back_in_every_family(family, dtype, checkpoint, tmp_path):
    loaded = load_model(ModelSection(path=str(checkpoint(family)), dtype=dtype), 0)
    add_adapters(loaded.model, LoraSection(rank=2), seed=0)
    with perturbed_adapters(loaded.model, seed=0):
        weights = loaded.model.state_dict()
        save_model(loaded, tmp_path / "model")
        save_adapter(loaded.model, weights, tmp_path / "adapter")
        said = trainer_logits(loaded, PROMPTS)
        model = check_saved(loaded, tmp_path / "model", plain_state(loaded.model), PROMPTS, said)
        check_adapter(model, tmp_path / "adapter", weights, PROMPTS, said)


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_one_number(saved):
    folder, check = saved
    assert check() is not None

    def change(tensors):
        weight = tensors["model.norm.weight"]
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))

    edit(folder, change)
    with pytest.raises(SavedDiffers, match=r"the weight model\.norm\.weight comes back with other numbers"):
        check()


def test_a_weight_that_is_not_there(saved):
    folder, check = saved
    edit(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(SavedDiffers, match=r"1 weights come back missing \(first: model\.norm\.weight\)"):
        check()


def test_a_weight_too_many(saved):
    folder, check = saved
    edit(folder, lambda tensors: tensors.update(more=torch.ones(2)))
    with pytest.raises(SavedDiffers, match=r"1 weights come back unexpected \(first: more\)"):
        check()


def test_another_shape_of_the_same_weights(saved):
    folder, check = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))
    with pytest.raises(SavedDiffers, match="the saved model's logits differ from the trainer's by"):
        check()


def test_a_tokenizer_that_cuts_otherwise(saved):
    folder, check = saved
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SavedDiffers, match="gives other ids"):
        check()


def test_another_chat_template(saved):
    folder, check = saved
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(SavedDiffers, match="another chat template"):
        check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lost", ["embed_tokens", "lm_head", "o_proj", "down_proj"])
def test_adapters_of_one_kind_that_are_lost(lost, dtype, tmp_path):
    base = write_checkpoint(tmp_path / "base", "llama", initializer_range=0.2)  # layers that matter, as trained ones do
    loaded = load_model(ModelSection(path=str(base), dtype=dtype), 0)
    layers = ("embed_tokens", "q_proj", "k_proj", "o_proj", "down_proj", "lm_head")
    add_adapters(loaded.model, LoraSection(rank=2, layers=layers), seed=0)
    with perturbed_adapters(loaded.model, seed=0):
        said = trainer_logits(loaded, PROMPTS)
        weights = loaded.model.state_dict()
        for name in weights:
            if lost in name and ("lora_B" in name or "lora_embedding_A" in name):
                weights[name] = torch.zeros_like(weights[name])
        save_model(loaded, tmp_path / "model", weights)
        with pytest.raises(SavedDiffers, match="the saved model's logits differ"):
            check_saved(loaded, tmp_path / "model", plain_state(loaded.model, weights), PROMPTS, said)
        good = save_and_read(loaded, tmp_path / "good", said)
        save_adapter(loaded.model, weights, tmp_path / "adapter")
        with pytest.raises(SavedDiffers, match="the saved adapter's logits differ"):
            check_adapter(good, tmp_path / "adapter", loaded.model.state_dict(), PROMPTS, said)


def save_and_read(loaded, folder, said):
    save_model(loaded, folder)
    return check_saved(loaded, folder, plain_state(loaded.model), PROMPTS, said)


def test_modules_to_save_that_the_adapter_has_otherwise(loaded, tmp_path):
    add_adapters(loaded.model, LoraSection(rank=2, modules_to_save=("lm_head",)), seed=0)
    weights = loaded.model.state_dict()
    said = trainer_logits(loaded, PROMPTS)
    model = save_and_read(loaded, tmp_path / "model", said)
    save_adapter(loaded.model, weights, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stored["base_model.model.model.embed_tokens.weight"].zero_()
    save_file(stored, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(SavedDiffers, match="the saved adapter's logits differ"):
        check_adapter(model, tmp_path / "adapter", weights, PROMPTS, said)


def test_a_head_that_is_minus_infinity_for_padding_rows_is_compared_on_the_rest(loaded):
    said = trainer_logits(loaded, PROMPTS)
    padded = [each.clone() for each in said.values]
    for each in padded:
        each[:, -3:] = -torch.inf
    assert median_gap(padded, padded) == 0
    assert median_gap([2 * each for each in padded], padded) == pytest.approx(1)
    assert median_gap([torch.full_like(each, torch.nan) for each in padded], padded) == torch.inf
