"""Adapters change nothing until they are trained, are all that is trained, and merge into a plain model exactly."""

import pytest
import torch
from peft import PeftModel

from heliostat.config import ConfigError, LoraSection, ModelSection
from heliostat.models import load_model, save_model
from heliostat.models.lora import add_adapters, is_adapted, merged, save_adapter
from tests.conftest import NANO

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SECTION = LoraSection(rank=2, alpha=8)


def nano():
    return load_model(ModelSection(path="tiny", settings=NANO), 0)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def stirred(loaded):
    """Adapters that do something."""
    add_adapters(loaded.model, SECTION, seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return loaded


def test_fresh_adapters_change_nothing_and_freeze_the_rest():
    loaded = nano()
    before = logits(loaded.model)
    add_adapters(loaded.model, SECTION, seed=1)
    assert torch.equal(logits(loaded.model), before)
    trainable = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * NANO["num_layers"], "A and B of every linear layer but the head"
    assert all(".lora_" in name for name in trainable)
    hidden = loaded.head.hidden(input_ids=IDS)
    assert torch.allclose(loaded.head.logits(hidden), logits(loaded.model)), "the head still is the model's"


def test_the_same_seed_gives_the_same_adapters_and_leaves_torchs_own_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = nano(), nano()
    for loaded in (first, second):
        add_adapters(loaded.model, SECTION, seed=3)
    assert torch.equal(torch.rand(1), expected)
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_merged_is_the_dense_sum_and_computes_the_same(tmp_path):
    loaded = stirred(nano())
    plain = merged(loaded.model, loaded.model.state_dict())
    assert plain.keys() == nano().model.state_dict().keys()
    layer = loaded.model.model.layers[0].mlp.down_proj
    dense = layer.base_layer.weight + 4.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(plain["model.layers.0.mlp.down_proj.weight"], dense, atol=1e-6)
    save_model(loaded, tmp_path / "model")
    again = load_model(ModelSection(path=str(tmp_path / "model"), dtype="float32"), 0)
    assert not is_adapted(again.model)
    assert torch.allclose(logits(again.model), logits(loaded.model), atol=1e-5)
    assert not torch.allclose(logits(again.model), logits(nano().model), atol=1e-2)


def test_peft_reads_the_adapter(tmp_path):
    loaded = stirred(nano())
    save_adapter(loaded.model, loaded.model.state_dict(), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(nano().model, tmp_path / "adapter")
    assert torch.allclose(logits(theirs), logits(loaded.model), atol=1e-6)


def test_targets_that_are_not_there_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"names no layer of the model; its linear layers are: .*q_proj"):
        add_adapters(nano().model, LoraSection(rank=2, layers=("qkv",)), seed=0)
