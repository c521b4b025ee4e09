"""An update and a decoding pass on the meta device, which raises where a GPU would be waited for or devices mixed."""

import pytest
import torch
from transformers import DynamicCache

from heliostat.config import ModelSection
from heliostat.models import load_model
from heliostat.rollout.in_process.rows import Rows
from heliostat.train.logprobs.layout_trial import trial_rows
from heliostat.train.logprobs.layouts import Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.packing import token_batch
from heliostat.train.logprobs.policy import Policy

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}


@pytest.fixture(scope="module")
def on_meta():
    """A policy whose weights are on the meta device, and rows to score."""
    loaded = load_model(ModelSection(path="tiny", settings=SHAPE), 0, torch.device("cpu"))
    rows, policy = trial_rows(loaded), Policy(loaded, 1.0, shared_prompt=True)
    loaded.model.to("meta")
    policy.device = torch.device("meta")
    return policy, rows


@pytest.mark.parametrize("layout", [Tree(), Packed()], ids=["tree", "packed"])
def test_an_update_waits_for_nothing(on_meta, layout):
    policy, rows = on_meta
    policy.layouts = (layout,)
    batch = token_batch(rows, policy.log_probs(rows))
    tensors = (batch.sequence, batch.num_tokens, batch.advantage, batch.logp_old, batch.logp_gen)
    assert {each.device.type for each in tensors} == {"meta"}
    policy.log_probs(rows).sum().backward()
    assert all(weight.grad.device.type == "meta" for weight in policy.loaded.model.parameters())


def test_a_decoding_pass_waits_for_nothing(on_meta):
    loaded = on_meta[0].loaded
    ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool, device="meta")
    cache = DynamicCache(config=loaded.model.config)
    loaded.head.hidden(input_ids=ids, attention_mask=mask, position_ids=ids, memory=cache, use_cache=True)
    rows = Rows(cache, ids[:, 0], group_size=2, room=4)
    assert rows.hidden(loaded, ids.new_zeros(4, 1)).shape == (4, 1, 32)
