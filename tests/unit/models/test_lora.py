"""Adapters change nothing until they are trained, are all that is trained, and merge into a plain model exactly."""

import pytest
import torch
from peft import PeftModel

from heliostat.config import ConfigError, LoraSection, ModelSection
from heliostat.models import load_model, save_model
from heliostat.models.lora import add_adapters, is_adapted, merged, perturbed_adapters, save_adapter
from tests.support.nano import NANO

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SECTION = LoraSection(rank=2, alpha=8)


def nano():
    return load_model(ModelSection(path="tiny", settings=NANO), 0)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def stirred_by_hand(loaded):
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


def test_a_learning_rate_moves_the_model_as_far_at_every_rank():
    moved = []
    for rank in (1, 8, 64):
        model = nano().model
        add_adapters(model, LoraSection(rank=rank, alpha=16), seed=0)
        ids = torch.arange(10, 90).reshape(8, 10)
        before = model(input_ids=ids).logits.log_softmax(-1)
        before.gather(-1, ids.roll(-1, 1)[..., None]).mean().neg().backward()
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3).step()
        with torch.no_grad():
            moved.append(float((model(input_ids=ids).logits.log_softmax(-1) - before).abs().mean()))
    assert min(moved) > 0
    assert max(moved) < 2.5 * min(moved), f"a rank of 64 needs no other rate than a rank of 1: {moved}"


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
    loaded = stirred_by_hand(nano())
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
    loaded = stirred_by_hand(nano())
    save_adapter(loaded.model, loaded.model.state_dict(), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(nano().model, tmp_path / "adapter")
    assert torch.allclose(logits(theirs), logits(loaded.model), atol=1e-6)


def test_targets_that_are_not_there_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"names no layer of the model; its linear layers are: .*q_proj"):
        add_adapters(nano().model, LoraSection(rank=2, layers=("qkv",)), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [("embed_tokens",), ("q_proj", "lm_head"), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_saved_as_they_compute(layers, tied, dtype, checkpoint, tmp_path):
    loaded = load_model(ModelSection(path=str(checkpoint("llama")), dtype=dtype), 0)
    model = loaded.model
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    base = logits(model)
    add_adapters(model, LoraSection(rank=2, layers=layers), seed=1)
    with perturbed_adapters(model, seed=3):
        expected = logits(model)
        save_model(loaded, tmp_path / "model")
    again = load_model(ModelSection(path=str(tmp_path / "model"), dtype=dtype), 0)
    distance = (logits(again.model) - expected).norm() / (expected - base).norm()
    assert distance < (1e-4 if dtype == "float32" else 0.1)
    untied = again.model.lm_head.weight is not again.model.model.embed_tokens.weight
    assert again.model.config.tie_word_embeddings is False
    assert untied
    assert model.config.tie_word_embeddings is tied, "saving leaves the model's own configuration alone"


@pytest.mark.parametrize("layers", [(), ("embed_tokens",), ("q_proj", "lm_head")])
def test_the_trainers_two_halves_see_every_adapter(layers):
    loaded = nano()
    add_adapters(loaded.model, LoraSection(rank=2, layers=layers), seed=1)
    with perturbed_adapters(loaded.model, seed=0), torch.no_grad():
        halves = loaded.head.logits(loaded.head.hidden(input_ids=IDS))
        assert torch.allclose(halves, logits(loaded.model), atol=1e-6)


def test_every_adapter_gets_a_gradient_through_the_halves():
    loaded = nano()
    add_adapters(loaded.model, LoraSection(rank=2, layers=("q_proj", "embed_tokens", "lm_head")), seed=1)
    with perturbed_adapters(loaded.model, seed=0):
        loaded.head.logits(loaded.head.hidden(input_ids=IDS)).square().sum().backward()
    trained = {name: p.grad for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * (NANO["num_layers"] + 2)
    assert all(grad is not None and grad.any() for grad in trained.values())


@pytest.mark.parametrize("layers", [(), ("q_proj", "gate_up_proj", "down_proj")])
def test_experts_in_one_tensor_are_merged_expert_by_expert(layers, checkpoint):
    model = load_model(ModelSection(path=str(checkpoint("qwen3_moe")), dtype="float32"), 0).model
    names = list(model.state_dict())
    experts = model.model.layers[0].mlp.experts
    before = experts.down_proj.detach().clone()
    add_adapters(model, LoraSection(rank=2, alpha=6, layers=layers), seed=1)
    with perturbed_adapters(model, seed=0):
        plain = merged(model, model.state_dict())
        (wrapper,) = (m for m in model.model.layers[0].mlp.experts.modules() if _adapts(m, "down_proj"))
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        for expert in range(4):  # ranks lie expert by expert in A, and interleaved in B
            change = 3.0 * b.view(len(b), -1, 4)[..., expert] @ a.view(4, -1, a.shape[-1])[expert]
            got = plain["model.layers.0.mlp.experts.down_proj"][expert]
            assert torch.allclose(got, before[expert] + change, atol=1e-6)
    assert set(plain) == set(names)


def _adapts(module, parameter):
    return getattr(module, "parameter_name", "") == parameter


def test_layers_that_the_model_reads_past_get_no_adapter(checkpoint):
    model = load_model(ModelSection(path=str(checkpoint("mamba")), dtype="float32"), 0).model
    before = logits(model)
    add_adapters(model, SECTION, seed=0)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"in_proj", "x_proj"}
    with perturbed_adapters(model, seed=0):
        assert not torch.allclose(logits(model), before, atol=1e-2)
    other = load_model(ModelSection(path=str(checkpoint("mamba")), dtype="float32"), 0).model
    with pytest.raises(ConfigError, match="an adapter on 'dt_proj' would never be trained"):
        add_adapters(other, LoraSection(rank=2, layers=("in_proj", "dt_proj")), seed=0)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            ("q_proj", "nope"),
            "'nope' names no layer of the model; its linear layers are: .*its embeddings: embed_tokens",
        ),
        (("input_layernorm",), r"layers\.0\.input_layernorm is a LlamaRMSNorm: adapters go on linear layers"),
        (("self_attn",), "is a LlamaAttention"),
        (("all-linear",), "not patterns, and an empty list means every linear layer but the head"),
        (("q_.*",), "not patterns"),
        (("q_proj", " "), "a name is empty"),
    ],
)
def test_every_name_must_lead_to_an_adapter(layers, reason):
    with pytest.raises(ConfigError, match=reason):
        add_adapters(nano().model, LoraSection(rank=2, layers=layers), seed=0)


def test_modules_to_save_are_trained_whole_and_tied_ones_together(tmp_path):
    loaded = nano()
    model = loaded.model
    add_adapters(model, LoraSection(rank=2, modules_to_save=("lm_head",)), seed=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.requires_grad
    assert not model.model.norm.weight.requires_grad
    with perturbed_adapters(model, seed=0):
        with torch.no_grad():
            model.lm_head.weight.add_(0.1 * torch.randn(model.lm_head.weight.shape))
        save_model(loaded, tmp_path / "model")
        save_adapter(model, model.state_dict(), tmp_path / "adapter")
        again = load_model(ModelSection(path=str(tmp_path / "model"), dtype="float32"), 0)
        assert torch.allclose(logits(again.model), logits(model), atol=1e-5)
        theirs = PeftModel.from_pretrained(nano().model, tmp_path / "adapter")
        assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


def test_a_module_with_modules_inside_is_trained_whole_without_adapters_in_it(tmp_path):
    loaded = nano()
    model = loaded.model
    add_adapters(model, LoraSection(rank=2, modules_to_save=("mlp",)), seed=1)
    trained = {name.rpartition(".mlp.")[2] for name, one in model.named_parameters() if one.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {f"{n}_proj.weight" for n in ("gate", "up", "down")}
    assert not any(".mlp." in name for name in model.state_dict() if ".lora_" in name)
    with perturbed_adapters(model, seed=0), torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        save_model(loaded, tmp_path / "model")
        save_adapter(model, model.state_dict(), tmp_path / "adapter")
        again = load_model(ModelSection(path=str(tmp_path / "model"), dtype="float32"), 0)
        theirs = PeftModel.from_pretrained(nano().model, tmp_path / "adapter")
        assert torch.allclose(logits(again.model), logits(model), atol=1e-5)
        assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"modules_to_save": ("nope",)}, "names no module of the model that has weights: 'nope'"),
        ({"modules_to_save": ("mlp",), "layers": ("down_proj",)}, "train it whole or by an adapter"),
        ({"modules_to_save": ("layers",)}, r"leaves no layer for an adapter; name fewer modules, or .* lora.rank = 0"),
        ({"modules_to_save": ("model",)}, "leaves no layer for an adapter"),
        ({"modules_to_save": ("",)}, "a name is empty"),
    ],
)
def test_modules_to_save_that_cannot_be(section, reason):
    with pytest.raises(ConfigError, match=reason):
        add_adapters(nano().model, LoraSection(rank=2, **section), seed=0)


def test_stirred_adapters_count_and_are_put_back_bit_for_bit():
    loaded = nano()
    add_adapters(loaded.model, LoraSection(rank=2, layers=("q_proj", "embed_tokens")), seed=1)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    with perturbed_adapters(loaded.model, seed=0):
        plain = merged(loaded.model, loaded.model.state_dict())
    for name in ("model.embed_tokens", "model.layers.1.self_attn.q_proj"):
        weight = before[f"{name}.base_layer.weight"]
        share = (plain[f"{name}.weight"] - weight).norm() / weight.norm()
        assert 0.15 < share < 0.6
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_adapter_is_not_put_beside_a_whole_model(tmp_path):
    loaded = stirred_by_hand(nano())
    save_model(loaded, tmp_path)
    with pytest.raises(ValueError, match="it holds a whole model"):
        save_adapter(loaded.model, loaded.model.state_dict(), tmp_path)


def test_an_adapter_weight_without_a_layer_is_an_error():
    loaded = stirred_by_hand(nano())
    weights = loaded.model.state_dict() | {"model.norm.lora_A.default.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="belong to no layer"):
        merged(loaded.model, weights)
