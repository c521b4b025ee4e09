r"""The gradient of the output head, which bounds from below how far a plain gradient step moves the policy.

Let ``z_t = W h_t`` be the logits at ``N`` tokens, ``pi_t`` their softmax, ``y_t`` the sampled token, and ``L`` a loss
of the log-probabilities ``log pi_t(y_t)`` with weights ``w_t = -N dL / d log pi_t(y_t)``. Then

    G = dL / dW = -(1/N) sum_t w_t (e_{y_t} - pi_t) h_t'

and the step ``W <- W - lr G`` of the head alone gives, without remainder,

    lr |G|^2 = (1/N) sum_t w_t (log pi'_t(y_t) - log pi_t(y_t) + KL(pi_t || pi'_t))

since ``c_t = dz_t - <pi_t, dz_t>`` has ``c_t(y) = log pi'_t(y) - log pi_t(y) + KL_t`` and logits are linear in ``W``.
By Cauchy-Schwarz, ``lr |G|^2 / rms(w)`` is at most the root mean square of that bracket, the token's log-ratio plus its
divergence. For tokens drawn from ``pi`` the mean square is ``2 KL`` to leading order, so that

    mean KL >= (lr |G|^2 / rms(w))^2 / 2        to leading order in lr

When all weights take a gradient step, the identity holds to first order with the whole gradient's norm, and ``|G|``,
being a part of it, still bounds from below. ``lr`` is the rate after clipping.

That the head's norm bounds policy divergence is a theorem of Miao et al. (2026, arXiv 2605.19425). Only its abstract
was available to us: statement and proof here are ours.

Left out: optimizers that rescale or average gradients, for which the norm bounds nothing; the divergence from an
earlier sampler, which is 0 at the anchor whatever the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from heliostat.optim.distributed.sharded_tensors import full_tensor
from heliostat.types import Mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_GRADIENT = "optim/head_grad_norm"


def head_gradient(model: PreTrainedModel) -> dict[str, Mean]:
    """Measure the norm of the gradient that a backward pass left in the output head's matrix.

    **Limits** No metric where that matrix has no gradient of its own: it is frozen (LoRA, whether or not the head has
    an adapter), or the model has no head. A trained head without any signal: 0. A head tied to the input embedding: the
    shared matrix's gradient, of which both uses are part; the bound then holds to first order only.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    if weight is None or not weight.requires_grad:
        return {}
    if weight.grad is None:
        return {HEAD_GRADIENT: Mean(0.0, 1)}
    norm = torch.linalg.vector_norm(weight.grad, dtype=torch.promote_types(weight.grad.dtype, torch.float32))
    return {HEAD_GRADIENT: Mean(float(full_tensor(norm)), 1)}
