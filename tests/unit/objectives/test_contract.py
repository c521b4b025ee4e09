import dataclasses
import math

import pytest
import torch
from ragged import CASES, REWARDS, build, case_name, random_batch, run, take

from heliostat.tracking import METRICS

every = pytest.mark.parametrize("case", CASES, ids=case_name)


def objective_of(case):
    return build(case[0], **case[1])


@every
def test_micro_batches_sum_to_the_step_and_order_does_not_matter(case):
    objective = objective_of(case)
    logp_new, tokens = random_batch(11)
    normalizer = objective.normalizer(tokens.num_tokens)
    whole, gradient = run(objective, logp_new, tokens)
    loss, pieces, clipped = 0.0, torch.zeros_like(gradient), []
    splits = ([6, 4, 7, 5], [1, 3, 0, 2]) if objective.needs_whole_groups else ([6, 2], [5], [1, 0, 7], [4, 3])
    for sequences in splits:
        part_new, part, where = take(logp_new, tokens, sequences)
        output, part_gradient = run(objective, part_new, part, normalizer)
        loss += output.loss.item()
        pieces[where] = part_gradient
        clipped += list(output.metrics.values())
    assert loss == pytest.approx(whole.loss.item(), abs=1e-12)
    assert torch.allclose(pieces, gradient, atol=1e-14, rtol=1e-12)
    for mean in whole.metrics.values():
        assert sum(clipped[1:], clipped[0]) == mean


@every
def test_the_denominator_belongs_to_the_step_so_twice_the_denominator_halves_the_loss(case):
    objective = objective_of(case)
    logp_new, tokens = random_batch(3)
    normalizer = objective.normalizer(tokens.num_tokens)
    once, gradient = run(objective, logp_new, tokens, normalizer)
    twice, half = run(objective, logp_new, tokens, 2 * normalizer)
    assert twice.loss.item() == pytest.approx(once.loss.item() / 2)
    assert torch.allclose(half, gradient / 2)


@every
@pytest.mark.parametrize("first_update", [True, False])
def test_a_zero_signal_group_has_no_gradient_exactly_where_the_objective_says_so(case, first_update):
    objective = objective_of(case)
    logp_new, tokens = random_batch(5, drift=0.0 if first_update else 0.3, advantage=[0.0] * 8)
    _, gradient = run(objective, logp_new, tokens)
    if objective.can_drop_zero_advantage_groups(first_update):
        assert not gradient.any()
    else:
        assert bool(gradient.any())


@every
def test_equal_rewards_are_a_zero_signal_and_shifted_rewards_are_the_same_signal(case):
    objective = objective_of(case)
    rewards = torch.tensor(REWARDS)
    assert not objective.advantages(torch.full((5,), 0.3)).any()
    if getattr(objective, "baseline", "") != "mean-normalized":  # divides by the mean
        assert torch.allclose(objective.advantages(rewards + 7), objective.advantages(rewards), atol=1e-5)
    assert objective.advantages(rewards).dtype == rewards.dtype


@pytest.mark.slow
@every
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_stored_log_probs_that_are_not_finite_are_refused_by_name_and_number(case, bad):
    objective = objective_of(case)
    logp_new, tokens = random_batch(1)
    uses = {"logp_old"}
    uses |= {"logp_ref"} if objective.needs_reference else set()
    uses |= {"logp_gen"} if getattr(objective, "truncated_is", 0) else set()
    for name in ("logp_old", "logp_gen", "logp_ref"):
        broken = getattr(tokens, name).clone()
        broken[[2, 9]] = bad
        batch = dataclasses.replace(tokens, **{name: broken})
        if name in uses:
            with pytest.raises(ValueError, match=f"2 of 23 stored log-probs in {name} are NaN or infinite"):
                objective.loss(logp_new, batch, 8.0)
        else:
            assert objective.loss(logp_new, batch, 8.0).loss.isfinite()


@every
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_broken_current_policy_always_shows_in_the_loss(case, bad):
    """Even where a clip or a zero advantage would hide it, and where the anchor is the broken policy itself."""
    objective = objective_of(case)
    logp_new, tokens = random_batch(1, advantage=[0.0] * 8)
    with torch.no_grad():
        logp_new[4] = bad
    assert objective.loss(logp_new, tokens, 8.0).loss.isnan()
    assert objective.loss(logp_new, dataclasses.replace(tokens, logp_old=logp_new.detach()), 8.0).loss.isnan()


@every
def test_a_sequence_without_tokens_is_counted_and_adds_no_gradient(case):
    objective = objective_of(case)
    lengths = (3, 2)
    logp_new, tokens = random_batch(2, lengths=lengths, advantage=[0.5, -0.5])
    _, gradient = run(objective, logp_new, tokens)
    with_empty = dataclasses.replace(
        tokens,
        num_tokens=torch.tensor([3, 2, 0]),
        advantage=torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64),
        group=torch.tensor([0, 0, 1]),
    )
    output, same = run(objective, logp_new, with_empty)
    counted_by_tokens = objective.length_normalization == "token"
    assert torch.allclose(same, gradient * (1 if counted_by_tokens else 2 / 3))
    assert output.loss.isfinite()


@every
def test_a_micro_batch_without_sequences_is_a_zero_with_a_gradient(case):
    objective = objective_of(case)
    logp_new, tokens = random_batch(2, lengths=())
    output, gradient = run(objective, logp_new, tokens, 8.0)
    assert output.loss.item() == 0.0
    assert gradient.shape == (0,)
    assert output.loss.requires_grad


@every
def test_float32_agrees_with_float64(case):
    objective = objective_of(case)
    logp_new, tokens = random_batch(8)
    output, gradient = run(objective, logp_new, tokens)
    single = dataclasses.replace(
        tokens,
        **{key: getattr(tokens, key).float() for key in ("advantage", "logp_old", "logp_gen", "logp_ref")},
    )
    output32, gradient32 = run(objective, logp_new.detach().float().requires_grad_(), single)
    assert output32.loss.dtype == gradient32.dtype == torch.float32
    assert torch.allclose(gradient32.double(), gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
    assert output32.loss.item() == pytest.approx(output.loss.item(), rel=1e-3, abs=1e-5)


@every
def test_metrics_are_declared_and_counted_per_token(case):
    output, _ = run(objective_of(case), *random_batch(4))
    for key, mean in output.metrics.items():
        assert key in METRICS
        assert mean.count == 23
        assert 0 <= mean.total <= 23


def test_a_missing_reference_is_refused_and_an_unneeded_one_is_not_asked_for():
    logp_new, tokens = random_batch(4)
    without = dataclasses.replace(tokens, logp_ref=None)
    with pytest.raises(ValueError, match="objective 'grpo' with a reference penalty needs logp_ref"):
        build("grpo", kl_ref=0.1).loss(logp_new, without, 8.0)
    assert build("grpo").loss(logp_new, without, 8.0).loss.isfinite()


@pytest.mark.parametrize("normalizer", [0.0, -1.0, math.nan, math.inf])
def test_a_normalizer_that_cannot_divide_is_refused(normalizer):
    with pytest.raises(ValueError, match="normalizer of a step must be positive"):
        build("pmd-mean").loss(*random_batch(4), normalizer)


def test_shapes_that_disagree_are_refused(wrong_shapes):
    logp_new, tokens = random_batch(4)
    objective = build("pmd-mean")
    with pytest.raises(ValueError, match="a batch of 23 tokens needs one logp_new"):
        objective.loss(logp_new[:-1], tokens, 8.0)
    with pytest.raises(ValueError, match="8 sequences need as many advantages"):
        objective.loss(logp_new, dataclasses.replace(tokens, advantage=tokens.advantage[:-1]), 8.0)


def test_an_advantage_that_is_not_finite_is_refused():
    logp_new, tokens = random_batch(4, advantage=[math.nan] * 2 + [0.0] * 6)
    with pytest.raises(ValueError, match="2 of 8 advantages are NaN"):
        build("pmd-mean").loss(logp_new, tokens, 8.0)
