import pytest
import torch

from heliostat.config import ConfigError
from heliostat.models.architecture_probes import PROBE_LENGTH, check_causal, probe_ids, probing
from tests.support.checkpoints import FAMILIES, VOCAB_SIZE, load_float32


def bidirectional():
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    return BertLMHeadModel(
        BertConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
    )


def test_probe_ids_are_different_and_inside_the_vocabulary(tiny):
    ids = probe_ids(tiny.model)
    assert ids.shape == (1, PROBE_LENGTH)
    assert len(set(ids[0].tolist())) == PROBE_LENGTH
    assert set(ids[0].tolist()).isdisjoint(tiny.tokenizer.all_special_ids)
    assert ids.max() < len(tiny.tokenizer)


def test_an_encoder_is_found_out():
    with pytest.raises(ConfigError, match="looks at later tokens"):
        check_causal(bidirectional(), "bert")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_language_model_is_taken_for_an_encoder(family: str, dtype: torch.dtype, checkpoint):
    check_causal(load_float32(checkpoint(family)).model.to(dtype), family)


def test_a_model_that_cannot_run_is_reported_with_the_way_out(checkpoint):
    model = load_float32(checkpoint("llama")).model
    model.get_output_embeddings().to(torch.float64)  # a real mismatch of dtypes inside the forward
    with pytest.raises(ConfigError, match=r"'broken' cannot run in float\d+ on cpu.*model.dtype = 'float32'"):
        check_causal(model, "broken")


def test_modes_of_all_modules_are_put_back(checkpoint):
    model = load_float32(checkpoint("gpt2")).model.train()
    model.base_model.h[0].eval()
    before = [module.training for module in model.modules()]
    with probing(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_dropout_does_not_disturb_a_probe(checkpoint):
    model = load_float32(checkpoint("gpt2")).model.train()
    check_causal(model, "gpt2")
