"""The largest difference between a sampler's log-probabilities and the trainer's, measured after every weight sync.

Left out: the comparison on all tokens trained on, which every training step makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Probe:
    """A few tokens that a server sampled, to compare with the trainer.

    Attributes:
        dtype: that the server says it computes in; empty: it does not tell.
    """

    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    temperature: float
    dtype: str = ""

    def gap(self, loaded: LoadedModel, temperature: float | None = None) -> float:
        """Return the gap to the model's current weights, at the sampling temperature or another one."""
        return parity_gap(loaded, self.prompts, self.completions, temperature or self.temperature)

    def reason(self, loaded: LoadedModel, max_gap: float) -> str:
        """Name the reason for a gap that is too large, as far as measurements tell."""
        if self.temperature != 1.0 and self.gap(loaded, 1.0) <= max_gap:
            return (
                "its log-probabilities are those at temperature 1; start vLLM with --logprobs-mode processed_logprobs, "
                "and SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"
            )
        if self.gap(loaded) <= PARITY_BOUNDS[torch.bfloat16]:
            ours = str(loaded.model.dtype).removeprefix("torch.")
            theirs = self.dtype or "another precision"
            return (
                f"that is the size of rounding, and it computes in {theirs} where the trainer computes in {ours}; "
                "start both in one dtype, or raise rollout.max_parity_gap"
            )
        return "that is more than rounding: it holds other weights than were sent; see what it logs, then restart it"
