"""Layers that are computed again are computed as they were the first time, whatever they drop out by themselves."""

import json
import warnings

import pytest
import torch

from heliostat.train.logprobs import layout_trial as exact_module
from heliostat.train.logprobs.policy import Policy
from tests.support.checkpoints import load_float32
from tests.support.model_families import small

RATES = ("dropout", "attention_dropout", "activation_dropout", "layerdrop", "decoder_layerdrop", "resid_pdrop")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "bart", "biogpt", "gpt2", "llama"])
def test_dropout_of_a_layers_own_stays_off(family, tmp_path):
    base = small.write_small(family, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {rate: 0.5 for rate in RATES if rate in config}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_float32(base)
        loaded.model.eval()
        rows = exact_module.trial_rows(loaded)
        results = []
        for gradient_checkpointing in (False, True):
            loaded.model.zero_grad()
            logp = Policy(loaded, 1.0, shared_prompt=False, gradient_checkpointing=gradient_checkpointing).log_probs(
                rows
            )
            logp.sum().backward()
            results.append([logp.detach(), *(each.grad for each in loaded.model.parameters() if each.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert not any(module.training for module in loaded.model.modules())
