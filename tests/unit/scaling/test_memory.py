"""Memory adds up, and what a forward keeps is what autograd keeps."""

import dataclasses

import pytest
import torch

from heliostat.scaling import H100, MODELS, GpuLayout, Job, memory, sampling_memory, shape_of, training_memory
from heliostat.scaling.memory import activation_bytes, token_bytes
from heliostat.train.logprobs import policy

JOB = Job(num_prompts=64, group_size=8, prompt_tokens=200, mean_tokens=500, longest_tokens=2000)
SEVEN = MODELS["qwen2.5-7b"]


@pytest.mark.parametrize(("stored", "size"), [("bfloat16", 18), ("float32", 16)])
def test_bytes_of_a_weight(stored, size):
    alone = training_memory(SEVEN, JOB, GpuLayout(), stored)
    assert alone.state == size * SEVEN.num_parameters
    assert alone.gathered == 0
    for num in (2, 8, 64):
        assert training_memory(SEVEN, JOB, GpuLayout(num), stored).state == alone.state
        cut = training_memory(SEVEN, JOB, GpuLayout(num, sharded=True), stored)
        assert num * cut.state == pytest.approx(alone.state, rel=1e-12)
        assert cut.peak >= cut.state


def test_expert_parallelism_holds_the_same_and_gathers_less():
    kimi = MODELS["kimi-k2"]
    plain, divided = (training_memory(kimi, JOB, GpuLayout(256, True, expert_ways=ways)) for ways in (1, 32))
    assert divided.state == pytest.approx(plain.state, rel=1e-12)
    assert divided.gathered < plain.gathered / 10


def test_many_ranks_hold_nothing_but_what_a_pass_needs():
    cut = training_memory(SEVEN, JOB, GpuLayout(10**9, sharded=True))
    assert cut.peak == pytest.approx(cut.gathered + cut.activations, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_keeps_is_what_autograd_keeps(family, dtype):
    """Of two and of four layers: the difference is two layers' without embedding, head and rotary tables."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    kept = {}
    for num_layers in (2, 4):
        config = AutoConfig.for_model(family, num_hidden_layers=num_layers, vocab_size=128, **sizes)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found, held = {}, []

        def keep(tensor, weights=weights, found=found, held=held):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
                held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.model(input_ids=torch.randint(0, 128, (2, 50)), use_cache=False)
        kept[num_layers] = sum(found.values())
    shape = shape_of(model.config.to_dict() | {"model_type": family}, family)
    assert (kept[4] - kept[2]) / 2 / 100 == token_bytes(shape, 0, dtype.itemsize)


def test_recomputing_keeps_an_input_per_layer_and_one_layer():
    plain = activation_bytes(SEVEN, JOB, 2)
    again = activation_bytes(SEVEN, dataclasses.replace(JOB, gradient_checkpointing=True), 2)
    tokens = JOB.microbatch_tokens
    layer = token_bytes(SEVEN, 0, 2)
    assert plain - again == tokens * ((SEVEN.num_layers - 1) * layer - 2 * SEVEN.num_layers * SEVEN.hidden)


def test_the_head_has_as_many_logits_as_training_has():
    assert memory.MAX_LOGITS == policy.MAX_LOGITS


def test_samplers_take_what_fits():
    roomy = sampling_memory(SEVEN, JOB, GpuLayout(8, True, num_samplers=8), H100)
    assert roomy.num_rows == 64  # all that it is given
    assert roomy.weights == 2 * SEVEN.num_parameters
    tight = sampling_memory(SEVEN, dataclasses.replace(JOB, longest_tokens=100_000), GpuLayout(8, True, 8), H100)
    assert 0 < tight.num_rows < 64
    assert sampling_memory(MODELS["qwen2.5-32b"], JOB, GpuLayout(8, True), H100).num_rows == 0
