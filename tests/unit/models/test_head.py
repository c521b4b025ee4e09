import warnings

import pytest
import torch
from torch import nn

from heliostat.models import completion_head
from heliostat.models.head import OUTPUT_RULES
from tests.support.checkpoints import load_float32

IDS = torch.arange(20, 29)[None]
RULED = {
    "granite": "logits_scaling",
    "cohere": "logit_scale",
    "falcon_h1": "lm_head_multiplier",
    "gemma2": "final_logit_softcapping",
    "recurrent_gemma": "logits_soft_cap",
}


def blow_up(model: nn.Module) -> None:
    """Large output weights, so that a cap on the logits bites."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(300)


@pytest.mark.parametrize("family", RULED)
def test_rules_hold_where_they_bite(family: str, checkpoint):
    model = load_float32(checkpoint(family)).model
    blow_up(model)
    head = completion_head(model)
    assert head.exact_split
    assert len(head.rules) == 1
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(head.logits(head.hidden(input_ids=IDS)), expected)
        assert not torch.allclose(head.projection(head.hidden(input_ids=IDS)), expected, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", RULED)
def test_a_rule_nobody_knew_of_is_noticed_and_full_logits_are_used(family, dtype, checkpoint, monkeypatch):
    """Even a cap of 30 on an untrained model's logits of 0.1, which changes them by less than rounding."""
    model = load_float32(checkpoint(family)).model.to(dtype)
    monkeypatch.delitem(OUTPUT_RULES, RULED[family])
    with pytest.warns(UserWarning, match=f"{type(model).__name__}.*every position"):
        head = completion_head(model)
    assert not head.exact_split
    blow_up(model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits.float()
        assert torch.equal(head.logits(head.hidden(input_ids=IDS)), expected)
        assert torch.equal(head.logits(head.hidden(input_ids=IDS)[:, 4:6]), expected[:, 4:6])


def test_logits_are_float32_whatever_the_weights_are(checkpoint):
    model = load_float32(checkpoint("llama")).model.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = completion_head(model)
    hidden = head.hidden(input_ids=IDS)
    assert hidden.dtype == torch.bfloat16
    assert head.logits(hidden).dtype == torch.float32


def test_head_follows_the_weights(checkpoint):
    """It shares them: after an update of the model there is nothing to refresh."""
    model = load_float32(checkpoint("llama")).model
    head = completion_head(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        torch.testing.assert_close(head.logits(head.hidden(input_ids=IDS)), model(input_ids=IDS).logits)


def test_probing_leaves_no_hook_and_no_gradient_behind(checkpoint):
    model = load_float32(checkpoint("gemma2")).model
    completion_head(model)
    assert not model.base_model._forward_hooks
    assert all(weight.grad is None for weight in model.parameters())
