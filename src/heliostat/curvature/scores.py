"""Score functions of single samples, and labels sampled from the model itself.

The score function of a sample is the gradient of its log-probability by the weights, ``grad log p(y | x)``; "score" for
short. Under labels drawn from the model its mean is zero and its second moment is the Fisher matrix.

Left out: the choice of samples, and the use of their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from heliostat.arguments import texts

LogProb = Callable[[Shaped[Tensor, "..."], Shaped[Tensor, "..."]], Float[Tensor, ""]]


def categorical_log_prob(logits: Float[Tensor, "... vocab"], label: Int[Tensor, ...]) -> Float[Tensor, ""]:
    """Return ``sum log softmax(logits)[label]``, over all positions of one sample."""
    return torch.log_softmax(_wide(logits), -1).gather(-1, label.unsqueeze(-1)).sum()


def per_sample_scores(
    model: nn.Module,
    inputs: Shaped[Tensor, "sample ..."],
    labels: Shaped[Tensor, "sample ..."],
    log_prob: LogProb = categorical_log_prob,
    only: Iterable[str] | None = None,
) -> dict[str, Float[Tensor, "sample ..."]]:
    """Compute the score ``u_n = grad log p(y_n | x_n)`` of every sample, by parameter name, in one vectorised pass.

    Args:
        inputs: one sample per first index.
        labels: likewise.
        log_prob: the log-probability of one sample from the model's output for it.
        only: names of the parameters to differentiate by; all trainable ones where not given.

    Limits:
        Their mean is the gradient of the mean log-probability.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = trainable if only is None else trainable & set(texts(only, "only"))
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in wanted}
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in wanted}
    fixed |= {name: buffer.detach() for name, buffer in model.named_buffers()}

    def of_one(
        weights: dict[str, Float[Tensor, ...]], sample: Shaped[Tensor, ...], label: Shaped[Tensor, ...]
    ) -> Float[Tensor, ""]:
        output = functional_call(model, {**fixed, **weights}, (sample.unsqueeze(0),))
        return log_prob(output.squeeze(0), label)

    with _weights_kept(model):
        found: dict[str, Float[Tensor, "sample ..."]] = vmap(grad(of_one), in_dims=(None, 0, 0))(
            parameters, inputs, labels
        )
    return found


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore every module's own tensors when the context ends.

    ``functional_call`` leaves traced tensors in a module that has two names: it replaces such a weight twice, and
    restores the replacement of the first time as if it were the original.
    """
    before = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters, buffers in before:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def sampled_log_likelihood(
    logits: Float[Tensor, "... vocab"], generator: torch.Generator | None = None
) -> Float[Tensor, ""]:
    """Return ``sum_n log p(y_n | x_n)`` with labels ``y_n`` drawn from the model, for Fisher statistics."""
    with torch.no_grad():
        probabilities = torch.softmax(logits.detach().float(), -1).reshape(-1, logits.shape[-1])
        labels = torch.multinomial(probabilities, 1, generator=generator)
    log_probs = torch.log_softmax(_wide(logits).reshape(-1, logits.shape[-1]), -1)
    return log_probs.gather(1, labels).sum()


def _wide(logits: Float[Tensor, "*position vocab"]) -> Float[Tensor, "*position vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
