import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.train.logprobs.layouts import Cached, Plain, Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.packing import GroupShape, by_group, microbatches, rows_of, token_batch
from heliostat.types import Completion, Group, Problem, Prompt, StopReason, TrainingGroup


def group_of(index, context_length, lengths):
    prompt = Prompt(Problem(f"p{index}", "t", "?"), tuple(range(1, context_length + 1)))
    completions = tuple(
        Completion(tuple(range(n)), -np.ones(n, np.float32), np.ones(n, np.float32), StopReason.EOS, "")
        for n in lengths
    )
    return TrainingGroup(Group(prompt, completions), torch.arange(len(lengths), dtype=torch.float32))


shapes = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=5)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(shapes=shapes, max_tokens=st.integers(1, 300), layout=st.sampled_from([Plain(), Tree(), Cached(), Packed()]))
def test_every_row_is_packed_once_within_budget(shapes, max_tokens, layout):
    rows = rows_of([group_of(i, context, lengths) for i, (context, lengths) in enumerate(shapes)])

    def cost(groups):
        return layout.work(groups).num_tokens

    batches = microbatches(rows, max_tokens, cost)
    assert sorted(id(row) for batch in batches for row in batch) == sorted(id(row) for row in rows)
    for batch in batches:
        assert len(batch) == 1 or cost([GroupShape.of(group) for group in by_group(batch)]) <= max_tokens
    for batch in (whole := microbatches(rows, max_tokens, cost, whole_groups=True)):
        groups = by_group(batch)
        assert [len(group) for group in groups] == [len(shapes[group[0].group][1]) for group in groups]
        assert len(groups) == 1 or cost([GroupShape.of(group) for group in groups]) <= max_tokens
    assert sum(map(len, whole)) == len(rows)


def test_groups_of_uneven_size_do_not_pad_each_other():
    """Exact counts: with a large budget everything fits one batch, and half of it would be padding."""
    layout = Tree()
    rows = rows_of([group_of(i, 20, [10 * (i + 1)] * 4) for i in range(12)])

    def cost(groups):
        return layout.work(groups).num_tokens

    batches = [[GroupShape.of(group) for group in by_group(batch)] for batch in microbatches(rows, 4096, cost)]
    unpadded = sum(cost([shape]) for batch in batches for shape in batch)
    assert (len(batches), unpadded, sum(map(cost, batches))) == (5, 3312, 3672)  # 11% of padding, mostly in the first
    assert cost([shape for batch in batches for shape in batch]) == 5952
    assert all(cost(batch) >= 4096 / 16 for batch in batches)


def test_a_token_batch_is_ragged_and_aligned():
    rows = rows_of([group_of(0, 3, [2, 1]), group_of(1, 4, [3])])
    logp = torch.arange(6, dtype=torch.float32, requires_grad=True)
    tokens = token_batch(rows, logp)
    assert tokens.sequence.tolist() == [0, 0, 1, 2, 2, 2]
    assert tokens.num_tokens.tolist() == [2, 1, 3]
    assert tokens.advantage.tolist() == [0.0, 1.0, 0.0]
    assert tokens.group.tolist() == [0, 0, 1]
    torch.testing.assert_close(tokens.logp_old, logp.detach())
    assert tokens.logp_gen.tolist() == [-1.0] * 6
    assert not tokens.logp_old.requires_grad


def test_a_group_is_never_split_between_updates():
    from heliostat.types import Batch

    batch = Batch(tuple(group_of(i, 3, [2, 2]) for i in range(5)))
    parts = batch.minibatches(2, [4, 3, 2, 1, 0])
    assert [g.group.prompt.problem.problem_id for part in parts for g in part.groups] == ["p4", "p3", "p2", "p1", "p0"]
    with pytest.raises(ValueError, match="6 updates out of 5"):
        batch.minibatches(6, range(5))
