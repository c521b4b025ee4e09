import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from heliostat.config import ModelSection
from heliostat.models import BACKWARD_COST, LoadedModel, forward_flops, load_model
from tests.support.checkpoints import load_float32

NUM_ROWS, NUM_TOKENS = 3, 11
IDS = torch.arange(NUM_ROWS * NUM_TOKENS).reshape(NUM_ROWS, NUM_TOKENS) + 20


def counted(loaded: LoadedModel, backward: bool = False) -> int:
    """torch's own count, rotary tables aside (they depend on positions, not on weights)."""
    loaded.model.set_attn_implementation("eager")  # torch does not count the fused CPU attention kernel
    with FlopCounterMode(display=False) as counter:
        logits = loaded.model(input_ids=IDS, use_cache=False).logits
        if backward:
            logits.sum().backward()
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    rotary = sum(flops for name, flops in by_module.items() if name.endswith("rotary_emb"))
    return counter.get_total_flops() - rotary


def predicted(loaded: LoadedModel) -> float:
    return forward_flops(loaded, NUM_ROWS * NUM_TOKENS, NUM_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"num_kv_heads": 2, "num_layers": 3, "intermediate_size": 200}])
def test_equals_torchs_count_on_the_tiny_model(settings: dict[str, int]):
    loaded = load_model(ModelSection(settings=settings), 0, torch.device("cpu"))
    assert predicted(loaded) == counted(loaded)
    assert (1 + BACKWARD_COST) * predicted(loaded) == counted(loaded, backward=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "phi3", "granite"])
def test_equals_torchs_count_on_dense_transformers(family: str, checkpoint):
    loaded = load_float32(checkpoint(family))
    assert predicted(loaded) == counted(loaded)


def test_logits_are_charged_apart(tiny: LoadedModel):
    width, vocab_size = tiny.model.config.hidden_size, len(tiny.tokenizer)
    difference = forward_flops(tiny, 100, 10) - forward_flops(tiny, 100, 10, num_logits=40)
    assert difference == 2 * width * vocab_size * 60


def test_linear_in_tokens_and_affine_in_context(tiny: LoadedModel):
    """Decoding token by token costs what one pass under causality does."""
    stepwise = sum(forward_flops(tiny, 1, context) for context in range(1, 12))
    assert stepwise == forward_flops(tiny, 11, 6.0)


def test_attention_stops_growing_at_the_window(checkpoint):
    loaded = load_float32(checkpoint("mistral"))  # window 8 in both layers
    assert forward_flops(loaded, 1, 4) < forward_flops(loaded, 1, 8) == forward_flops(loaded, 1, 60)
    half = load_float32(checkpoint("gemma2"))  # window 8 in one layer of two
    per_layer = 4 * 4 * 8
    assert forward_flops(half, 1, 60) - forward_flops(half, 1, 8) == per_layer * (60 - 8)


def test_a_recurrent_model_does_not_pay_for_context(checkpoint):
    loaded = load_float32(checkpoint("mamba"))
    assert forward_flops(loaded, 5, 1) == forward_flops(loaded, 5, 1000)


def test_routed_experts_are_charged_for_their_share(checkpoint):
    """Two of four experts: all expert weights count half, everything else whole."""
    loaded = load_float32(checkpoint("qwen3_moe"))
    expert_weights = sum(weight.numel() for weight in loaded.model.parameters() if weight.ndim == 3)
    other_weights = sum(
        weight.numel()
        for name, weight in loaded.model.named_parameters()
        if weight.ndim == 2 and ("attn" in name or "lm_head" in name)
    )
    assert expert_weights > 0
    assert forward_flops(loaded, 1, 0) == 2 * (expert_weights / 2 + other_weights)
