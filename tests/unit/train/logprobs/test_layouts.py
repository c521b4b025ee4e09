"""Three layouts, one arithmetic: the same hidden states and gradients, and the token counts they claim."""

import itertools

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.logprobs import layouts
from heliostat.train.logprobs.layouts import Alone, Cached, Plain, Tree
from heliostat.train.logprobs.packed_layout import ATTENTION, Packed, Piece
from heliostat.train.logprobs.packing import GroupShape, by_group, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import TrainingGroup
from tests.support.nano import make_nano, make_prompts

LAYOUTS = [Plain(), Tree(), Cached(), Packed()]


def rows_from(loaded, num_prompts=5, group_size=3, max_new_tokens=9):
    engine = TorchEngine(loaded, DecodeLimits(max_new_tokens))
    groups = engine.sample(
        SampleRequest(make_prompts(loaded, num_prompts), group_size, SamplingSettings(), seed=1, policy_step=0)
    )
    return rows_of([TrainingGroup(group, torch.zeros(group_size)) for group in groups])


def hidden_and_gradient(layout, loaded, rows):
    loaded.model.zero_grad()
    hidden = layout.hidden(loaded, rows)
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    (hidden * weight).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize(("one", "two"), itertools.combinations(LAYOUTS, 2))
@pytest.mark.parametrize("max_new_tokens", [1, 9])
def test_layouts_agree_in_value_and_gradient(nano, one, two, max_new_tokens):
    rows = rows_from(nano, max_new_tokens=max_new_tokens)
    first, second = (hidden_and_gradient(layout, nano, rows) for layout in (one, two))
    torch.testing.assert_close(first[0], second[0], atol=2e-5, rtol=1e-5)
    assert float((first[1] - second[1]).norm() / second[1].norm()) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
@pytest.mark.parametrize("max_new_tokens", [1, 9])
def test_sizes_in_bfloat16_are_filled_up_and_change_nothing(layout, max_new_tokens, monkeypatch):
    """Every product is compiled once for its size, so sizes repeat; tokens that fill up take part in nothing."""
    loaded = make_nano(num_heads=4, num_kv_heads=2)
    rows = rows_from(loaded, max_new_tokens=max_new_tokens)
    sizes = {round_to: set() for round_to in (1, 16)}
    found = {}
    for round_to in sizes:
        monkeypatch.setattr(layouts, "ROUND_TO", round_to)
        narrow = make_nano(num_heads=4, num_kv_heads=2)
        narrow.model.bfloat16()
        projection = narrow.model.model.layers[0].mlp.gate_proj
        projection.register_forward_pre_hook(lambda _, x, at=sizes[round_to]: at.add(x[0].shape[:-1].numel()))
        found[round_to] = hidden_and_gradient(layout, narrow, rows)
    # The prompts of a cache are filled up on the left, to the longest alone.
    assert isinstance(layout, Cached) or all(size % 16 == 0 for size in sizes[16])
    assert not all(size % 16 == 0 for size in sizes[1])
    torch.testing.assert_close(found[16][0], found[1][0], atol=0.02, rtol=0.02)
    assert float((found[16][1] - found[1][1]).norm() / found[1][1].norm()) < 0.02


def test_one_row_at_a_time_is_never_padded():
    narrow = make_nano()
    narrow.model.bfloat16()
    rows, seen = rows_from(narrow, max_new_tokens=5), []
    narrow.model.get_input_embeddings().register_forward_hook(lambda _, x, __: seen.append(x[0].numel()))
    Alone().hidden(narrow, rows)
    assert seen == [row.context_length + row.length - 1 for row in rows]


@pytest.mark.slow
def test_rows_of_a_group_need_not_stand_together(nano):
    rows = rows_from(nano)
    shuffled = rows[1::2] + rows[::2]
    with torch.no_grad():
        for layout in LAYOUTS:
            straight = dict(zip(map(id, rows), _by_row(layout, nano, rows), strict=True))
            for row, piece in zip(shuffled, _by_row(layout, nano, shuffled), strict=True):
                torch.testing.assert_close(piece, straight[id(row)], atol=2e-5, rtol=1e-5)


def _by_row(layout, loaded, rows):
    return torch.split(layout.hidden(loaded, rows), [row.num_tokens for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_claimed_tokens_are_those_the_model_sees(nano, layout, monkeypatch):
    rows = rows_from(nano)
    seen = []
    embed = nano.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    with torch.no_grad():
        layout.hidden(nano, rows)
    handle.remove()
    assert sum(seen) == layout.work([GroupShape.of(group) for group in by_group(rows)]).num_tokens


@pytest.mark.slow
def test_bfloat16_prefers_the_layout_that_attends_in_float32():
    loaded = make_nano()
    wide = Policy(loaded, 1.0, shared_prompt=True)
    loaded.model.to(torch.bfloat16)
    narrow = Policy(loaded, 1.0, shared_prompt=True)
    narrow.layouts = wide.layouts = (Tree(), Packed())
    shapes = [[GroupShape(16, 8, 8 * length, length)] for length in range(2, 2000)]
    chosen = [[type(policy.cheapest(shape)[0]) for shape in shapes] for policy in (wide, narrow)]
    first_packed = [kinds.index(Packed) for kinds in chosen]
    assert first_packed[1] < first_packed[0]
    assert all(set(kinds[first:]) == {Packed} for kinds, first in zip(chosen, first_packed, strict=True))


@pytest.mark.slow
def test_the_cheapest_layout_follows_the_shape_of_the_batch():
    """Many short completions grow on trees; longer ones are packed, and cached where layers are not to be replaced."""
    policy = Policy(make_nano(), 1.0, shared_prompt=True)
    short = [GroupShape(context=16, num_rows=16, num_tokens=16 * 6, longest=12)] * 4
    uneven = [GroupShape(context=64, num_rows=8, num_tokens=8 * 1000, longest=1600)] * 4
    chosen = [policy.padded_tokens(shapes) for shapes in (short, uneven)]
    assert chosen == [Tree().work(short).num_tokens, Packed().work(uneven).num_tokens]
    assert type(policy.cheapest(short)[0]) is Tree
    assert type(policy.cheapest(uneven)[0]) is Packed
    # Exact: prompt and inputs of every completion once, nothing else.
    assert chosen == [4 * (16 + 16 * 6 - 16), 4 * (64 + 8 * 1000 - 8)]
    policy.layouts = (Tree(), Cached())
    even = [GroupShape(context=16, num_rows=8, num_tokens=8 * 4000, longest=4001)]
    for shapes, cheaper, other in ((short, Tree, Cached), (even, Cached, Tree)):
        tokens = [layout().work(shapes).num_tokens for layout in (cheaper, other)]
        assert policy.padded_tokens(shapes) == tokens[0] != tokens[1]
    # Eight copies of a long prompt, had it not been shared.
    assert Plain().work([GroupShape(1000, 8, 80, 10)]).num_tokens == 8 * 1009
    assert policy.padded_tokens([GroupShape(1000, 8, 80, 10)]) == 1000 + 72


def test_packed_rows_leave_the_models_attention_as_it_was(nano):
    rows = rows_from(nano)
    before = nano.model.config._attn_implementation
    Packed().hidden(nano, rows)
    assert nano.model.config._attn_implementation == before != ATTENTION


def test_recomputed_layers_and_windows_are_not_packed(nano):
    """A recomputed layer attends in the model's own way, and a window is not what each piece sees."""
    layouts = Policy(nano, 1.0, shared_prompt=True).layouts
    assert any(isinstance(layout, Packed) for layout in layouts)
    recomputed = Policy(nano, 1.0, shared_prompt=True, gradient_checkpointing=True).layouts
    assert not any(isinstance(layout, Packed) for layout in recomputed)
    windowed = ALL_ATTENTION_FUNCTIONS[ATTENTION]
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match="within a window"):
        windowed(nano.model, states, states, states, None, packed_pieces=[Piece(2)], sliding_window=1)


def kept_bytes(policy, rows):
    """Bytes that autograd keeps for the backward pass of a forward."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        policy.log_probs(rows)
    return sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_recomputation_changes_no_gradient_and_keeps_less(nano, shared):
    rows = rows_from(nano)
    plain, again = (Policy(nano, 1.0, shared, gradient_checkpointing=flag) for flag in (False, True))
    results = []
    for policy in (plain, again):
        nano.model.zero_grad()
        logp = policy.log_probs(rows)
        logp.sum().backward()
        results.append((logp.detach(), [p.grad.clone() for p in nano.model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(one, two) for one, two in zip(results[0][1], results[1][1], strict=True))
    assert kept_bytes(again, rows) < 0.7 * kept_bytes(plain, rows)
    assert not any(module.training for module in nano.model.modules())
