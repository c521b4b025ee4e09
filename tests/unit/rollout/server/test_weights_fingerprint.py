import pytest
import torch

from heliostat.rollout.server import weights_fingerprint as module
from heliostat.rollout.server.weights_fingerprint import weights_fingerprint

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES)
def model(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)  # several chunks, the last one shorter
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3, dtype=request.param)


def test_it_is_equal_where_the_weights_are(model):
    before = weights_fingerprint(model)
    model.weight.data = model.weight.data.clone()
    assert weights_fingerprint(model) == before


def test_it_changes_with_the_smallest_change_of_any_entry(model):
    before = weights_fingerprint(model)
    for parameter in model.parameters():
        for index in range(parameter.numel()):
            kept = parameter.detach().clone()
            entry = parameter.data.view(-1)[index]
            entry.copy_(torch.nextafter(entry, torch.ones_like(entry)))
            assert weights_fingerprint(model) != before
            parameter.data.copy_(kept)
    assert weights_fingerprint(model) == before


def test_it_changes_where_entries_change_places(model):
    """As a step by a sign rule does in bfloat16: one entry up by its last bit, its equal down. No sum sees that."""
    before = weights_fingerprint(model)
    for other in (1, 4, 11):
        flat = model.weight.data.view(-1)
        flat[[0, other]] = flat[[other, 0]]
        assert weights_fingerprint(model) != before
        flat[[0, other]] = flat[[other, 0]]
    assert weights_fingerprint(model) == before


def test_weights_that_are_not_numbers_have_a_mark(model):
    model.weight.data.fill_(float("nan"))
    assert weights_fingerprint(model) == weights_fingerprint(model)
