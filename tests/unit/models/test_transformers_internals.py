"""Names of transformers that moved between versions, bridged."""

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import ModelOutput

from heliostat.models import transformers_internals
from heliostat.rollout.in_process.rows import RowLayer
from tests.support.nano import make_nano


class Recurrent(nn.Module):
    def forward(self, input_ids, state=None):
        return input_ids


class Memoryless(nn.Module):
    def forward(self, input_ids):
        return input_ids


def test_the_memory_has_the_name_that_the_forward_gives_it():
    assert transformers_internals.memory_argument(Recurrent()) == "state"
    assert transformers_internals.memory_argument(Memoryless()) is None
    assert transformers_internals.memory_of(ModelOutput(logits=torch.zeros(1))) is None
    assert transformers_internals.memory_of(ModelOutput(logits=torch.zeros(1), state=[1])) == [1]
    loaded, cache = make_nano(), DynamicCache()
    name = transformers_internals.memory_argument(loaded.model)
    assert name is not None
    output = loaded.model(input_ids=torch.tensor([[3, 4]]), use_cache=True, **{name: cache})
    assert transformers_internals.memory_of(output) is cache
    assert cache.get_seq_length() == 2


def test_no_deprecated_name_is_used(recwarn):
    """Where transformers renames what we pass, we pass the new name."""
    loaded = make_nano()
    loaded.head.hidden(input_ids=torch.tensor([[3, 4]]), memory=DynamicCache(), use_cache=True)
    assert not [each for each in recwarn if issubclass(each.category, FutureWarning)]


def test_masks_are_sized_for_lengths_and_for_positions():
    layer = RowLayer(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), capacity=5)
    assert layer.get_mask_sizes(2) == layer.get_mask_sizes(torch.arange(3, 5)) == (5, 0)
    assert layer.get_max_cache_shape() == layer.get_max_length() == 5


def test_another_attention_is_in_use_inside_only():
    model = make_nano().model
    before = transformers_internals.attention_in_use(model)
    with transformers_internals.with_attention(model, "eager"):
        assert transformers_internals.attention_in_use(model) == "eager"
    assert transformers_internals.attention_in_use(model) == before
