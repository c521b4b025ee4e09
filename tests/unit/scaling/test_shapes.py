"""Weights and operations counted from sizes are those of transformers' own modules."""

import json

import pytest
import torch

from heliostat.config import ConfigError, ModelSection
from heliostat.models import forward_flops, load_model
from heliostat.scaling import MODELS, read_shape, shape_of
from heliostat.scaling.catalog import CONFIGS

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
SHARED = {"n_routed_experts": 6, "n_shared_experts": 2, "first_k_dense_replace": 1}
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "head_dim": 24},
    "mistral": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "qwen3_moe": {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 5, "decoder_sparse_step": 1, **EXPERTS},
    "deepseek_v3": {"num_key_value_heads": 4, **LATENT, **EXPERTS, **SHARED},
}


def modules(config):
    """Transformers' own model of a configuration, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"tie_word_embeddings": False} | {key: value for key, value in config.items() if key != "model_type"}
    family = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_modules(family):
    config = {"model_type": family, **SMALL, **FAMILIES[family]}
    assert shape_of(config, family).num_parameters == sum(p.numel() for p in modules(config).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_published_models_have_the_weights_of_their_modules(name):
    assert MODELS[name].num_parameters == sum(p.numel() for p in modules(CONFIGS[name]).parameters())


def test_parts_add_up():
    for shape in MODELS.values():
        layers = [shape.layer_parameters(layer) for layer in range(shape.num_layers)]
        assert shape.num_parameters - sum(layers) == shape.vocab * shape.hidden * (2 - shape.tied) + shape.hidden
        assert shape.largest_layer == max(layers)
        assert shape.num_active <= shape.num_parameters


def test_a_trillion_of_which_thirty_two_billion_are_used():
    kimi = MODELS["kimi-k2"]
    assert kimi.num_parameters == pytest.approx(1.0e12, rel=0.05)
    assert kimi.num_active == pytest.approx(32e9, rel=0.05)
    assert kimi.touched_parameters(1) == pytest.approx(kimi.num_active, rel=1e-12)
    assert kimi.touched_parameters(1e6) == pytest.approx(kimi.num_parameters)
    dense = MODELS["qwen2.5-7b"]
    assert dense.touched_parameters(1) == dense.num_parameters == dense.num_active


@pytest.mark.parametrize("settings", [{}, {"num_heads": 8, "num_kv_heads": 2, "hidden_size": 64}])
def test_operations_are_those_of_the_loaded_model(settings):
    loaded = load_model(ModelSection(path="tiny", settings=settings), 0)
    shape = shape_of(loaded.model.config.to_dict(), "tiny")
    for num_tokens, num_context, num_logits in ((1, 0, 0), (100, 37.5, 100), (8, 4, 1)):
        assert shape.forward_flops(num_tokens, num_context, num_logits) == pytest.approx(
            forward_flops(loaded, num_tokens, num_context, num_logits), rel=1e-12
        )


def test_a_shape_is_read_from_a_folder_or_a_file_and_what_is_none_is_refused(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", **SMALL}))
    assert read_shape(str(tmp_path), {}).num_parameters == read_shape(str(config), {}).num_parameters
    with pytest.raises(ConfigError, match=r"unknown model 'qwen2\.5-7'.*'qwen2\.5-7b'"):
        read_shape("qwen2.5-7", MODELS)
    config.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match="'mamba' model"):
        read_shape(str(tmp_path), {})
    for broken in ("[]", "{", json.dumps({"model_type": "llama"})):
        config.write_text(broken)
        with pytest.raises(ConfigError, match="is not the configuration"):
            read_shape(str(tmp_path), {})
