"""Tokens of an environment run through the model and are never scored: in no layout, ratio, gradient or denominator."""

import numpy as np
import pytest
import torch

from heliostat.models.checks.reference_forward import reference_log_probs
from heliostat.train.logprobs.layouts import Alone, Cached, Plain, Tree
from heliostat.train.logprobs.packing import GroupShape, by_group, microbatches, token_batch
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.counts import UpdateCounts
from tests.support.trajectories import trajectory_rows

LAYOUTS = [Plain(), Tree(), Cached(), Alone()]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
def test_every_layout_scores_the_sampled_tokens_of_the_whole_text(nano, layout):
    rows = trajectory_rows(nano)
    assert any(len(row.completion.turns) > 2 for row in rows)
    with torch.no_grad():
        hidden = layout.hidden(nano, rows)
        targets = torch.tensor([token for row in rows for token in row.completion.sampled_ids])
        logp = torch.log_softmax(nano.head.logits(hidden), dim=-1).gather(1, targets[:, None])[:, 0]
    for row, piece in zip(rows, torch.split(logp, [row.num_tokens for row in rows]), strict=True):
        whole = reference_log_probs(nano, row.prompt.context_ids, row.completion.token_ids, 1.0)
        torch.testing.assert_close(piece, whole[row.scored].to(piece), atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
def test_the_claimed_tokens_are_those_the_model_sees(nano, layout):
    rows, seen = trajectory_rows(nano), []
    embed = nano.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    with torch.no_grad():
        layout.hidden(nano, rows)
    handle.remove()
    claimed = layout.work([GroupShape.of(group) for group in by_group(rows)]).num_tokens
    assert sum(seen) == claimed if not isinstance(layout, Alone) else sum(seen) <= claimed


@pytest.mark.slow
def test_the_gradient_at_an_environments_token_is_exactly_zero(nano):
    """Differentiated: by the logits from which every token of a trajectory is predicted."""
    rows = trajectory_rows(nano)
    policy = Policy(nano, temperature=1.0, shared_prompt=True)
    logits, project = [], nano.head.projection

    def keep(module, args, output):
        output.retain_grad()
        logits.append(output)

    handle = project.register_forward_hook(keep)
    policy.log_probs(rows).sum().backward()
    handle.remove()
    num_predicted = sum(len(one) for one in logits)
    assert num_predicted == sum(row.num_tokens for row in rows), "no logits are computed before other tokens"
    assert all((one.grad != 0).any(dim=-1).all() for one in logits)

    # Over the whole text, logits before every token: those before an environment's token get nothing.
    for row in rows:
        ids = torch.tensor([[*row.prompt.context_ids, *row.completion.token_ids]])
        everything = nano.model(input_ids=ids).logits.detach().requires_grad_()
        logp = torch.log_softmax(everything[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        logp[row.context_length - 1 :][row.scored].sum().backward()
        touched = (everything.grad[0] != 0).any(dim=-1).nonzero().flatten() - (row.context_length - 1)
        assert touched.tolist() == row.scored


@pytest.mark.slow
def test_the_loss_does_not_depend_on_the_environments_tokens_as_targets(nano):
    """The gradient of the weights is that of a dense loss over sampled tokens alone."""
    rows = trajectory_rows(nano)
    nano.model.zero_grad()
    weights = torch.tensor([row.advantage for row in rows for _ in range(row.num_tokens)])
    (Policy(nano, 1.0, shared_prompt=True).log_probs(rows) * weights).sum().backward()
    ours = torch.cat([p.grad.flatten() for p in nano.model.parameters()])
    nano.model.zero_grad()
    for row in rows:
        ids = torch.tensor([[*row.prompt.context_ids, *row.completion.token_ids]])
        logp = torch.log_softmax(nano.model(input_ids=ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        (row.advantage * logp[row.context_length - 1 :][row.scored].sum()).backward()
    dense = torch.cat([p.grad.flatten() for p in nano.model.parameters()])
    assert float((ours - dense).norm() / dense.norm()) < 1e-5


def test_a_batch_counts_sampled_tokens_alone(nano):
    rows = trajectory_rows(nano)
    logp = torch.zeros(sum(row.num_tokens for row in rows))
    batch = token_batch(rows, logp)
    assert batch.num_tokens.tolist() == [row.completion.num_sampled for row in rows]
    assert len(batch.sequence) == len(batch.logp_gen) == len(logp)
    np.testing.assert_array_equal(batch.logp_gen.numpy(), np.concatenate([row.completion.logp_gen for row in rows]))
    counts = UpdateCounts()
    for part in microbatches(rows, 10**6, lambda shapes: sum(shape.num_tokens for shape in shapes)):
        counts.add(part, shared_prompt=True)
    assert counts.completion_tokens == sum(len(row.completion.token_ids) for row in rows)
    assert counts.completion_tokens - counts.unscored_tokens == len(logp)
    assert counts.unscored_tokens > 0
