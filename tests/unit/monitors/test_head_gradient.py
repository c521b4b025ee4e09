"""The bound of the output head's gradient: exact for the head alone, to first order for a real step of all weights."""

import pytest
import torch

from heliostat.config import LoraSection
from heliostat.models.lora import add_adapters
from heliostat.monitors.head_gradient import HEAD_GRADIENT, head_gradient
from tests.support.nano import make_nano


def divergence(before, after):
    return (before.exp() * (before - after)).sum(-1)


def a_head_step(lr, num_tokens=4000, width=8, vocabulary=12):
    """Step a head alone in float64: the gradient, its tokens' weights, log-ratios and divergences."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, width, dtype=torch.float64)
    head = torch.randn(vocabulary, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(num_tokens, dtype=torch.float64)
    before = (hidden @ head.T).log_softmax(-1)
    tokens = torch.multinomial(before.detach().exp(), 1)
    loss = -(weights * before.gather(-1, tokens)[:, 0]).mean()
    (gradient,) = torch.autograd.grad(loss, head)
    with torch.no_grad():
        after = (hidden @ (head - lr * gradient).T).log_softmax(-1)
        before = before.detach()
        ratio = (after - before).gather(-1, tokens)[:, 0]
        return gradient, weights, ratio, divergence(before, after)


@pytest.mark.parametrize("lr", [1e-3, 1.0, 300.0])
def test_a_step_of_the_head_alone_moves_the_policy_as_the_identity_says(lr):
    gradient, weights, ratio, kl = a_head_step(lr)
    assert kl.mean() > 0
    moved = float((weights * (ratio + kl)).mean())
    assert lr * float(gradient.square().sum()) == pytest.approx(moved, rel=1e-8)
    bound = lr * float(gradient.square().sum() / weights.square().mean().sqrt())
    assert bound <= float((ratio + kl).square().mean().sqrt())


def test_the_divergence_of_a_short_step_is_above_the_bound():
    gradient, weights, _, kl = a_head_step(1.0)
    bound = float((gradient.square().sum() / weights.square().mean().sqrt()).square() / 2)
    assert 0 < bound <= float(kl.mean())


def token_log_probs(model, ids):
    return model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gradient_step_of_a_whole_model_moves_the_policy_at_least_as_far(tied):
    model, lr = make_nano(eos_bias=0).model, 1e-3
    if not tied:
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
        head.weight.data.copy_(model.get_output_embeddings().weight.data)
        model.set_output_embeddings(head)
    torch.manual_seed(0)
    ids = torch.randint(10, 200, (16, 12))
    with torch.no_grad():  # the last token is drawn from the policy
        ids[:, -1] = torch.multinomial(token_log_probs(model, ids)[:, -1].exp(), 1)[:, 0]
    weights = torch.randn(16, dtype=torch.float64)
    before = token_log_probs(model, ids)[:, -1]
    (-(weights * before.gather(-1, ids[:, -1:])[:, 0]).mean()).backward()
    norm = head_gradient(model)[HEAD_GRADIENT].value
    assert norm == pytest.approx(float(model.get_output_embeddings().weight.grad.norm()), rel=1e-5)
    torch.optim.SGD(model.parameters(), lr).step()
    with torch.no_grad():
        after = token_log_probs(model, ids)[:, -1]
        ratio, kl = (after - before).gather(-1, ids[:, -1:])[:, 0], divergence(before, after)
    assert 0 < lr * norm**2 <= float((weights * (ratio + kl)).mean())
    assert (lr * norm**2 / float(weights.square().mean().sqrt())) ** 2 / 2 <= float(kl.mean())


def test_an_untrained_head_has_no_norm_and_a_trained_one_without_a_signal_has_0():
    loaded = make_nano()
    assert head_gradient(loaded.model)[HEAD_GRADIENT].value == 0
    add_adapters(loaded.model, LoraSection(rank=2), seed=0)
    loaded.model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert head_gradient(loaded.model) == {}
    for section in (
        LoraSection(rank=2, layers=("lm_head",)),
        LoraSection(rank=2, modules_to_save=("lm_head",)),
    ):
        model = make_nano().model
        add_adapters(model, section, seed=0)
        model(input_ids=torch.arange(8)[None]).logits.square().sum().backward()
        measured = head_gradient(model)
        assert (measured[HEAD_GRADIENT].value > 0) if section.modules_to_save else (measured == {})
