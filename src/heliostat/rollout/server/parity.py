"""The largest difference between a sampler's log-probabilities and the trainer's, measured after every weight sync.

Left out: the comparison on all tokens trained on, which every training step makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heliostat.models import LoadedModel
from heliostat.types import Completion, Prompt

PARITY_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest gap in nats between sampler and trainer that rounding explains, by the dtype of the weights."""


class ParityError(RuntimeError):
    """Sampler and trainer disagree about log-probabilities by more than the recipe allows."""


@torch.no_grad()
def parity_gap(
    loaded: LoadedModel, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float
) -> float:
    """Return the largest ``|logp_gen - logp|`` over the tokens of the completions, in nats, one plain forward each.

    **Limits**: completions of the in-process engine: rounding, about 1e-6 in float32.
    """
    device = next(loaded.model.parameters()).device
    worst = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt.context_ids + completion.token_ids], device=device)
        hidden = loaded.head.hidden(input_ids=ids[:, :-1], use_cache=False)
        logits = loaded.head.logits(hidden[0, len(prompt.context_ids) - 1 :]).float() / temperature
        logp = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(prompt.context_ids) :, None]).squeeze(1)
        worst = max(worst, float((logp.cpu() - torch.from_numpy(completion.logp_gen)).abs().max()))
    return worst
