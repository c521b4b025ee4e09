"""What a step did, in the metrics' words: rewards, lengths, entropy, and how far the mirror step went.

The mirror-step numbers compare the policy after the phase with its anchor on (a sample of) the step's own rollouts:
``s = log pi_new(y|x) - log pi_old(y|x)`` per sequence, ``rho = e^s``. They are sample estimates; ``docs/theory.md``
says what each equals at the exact optimum.

Left out: alarms and actions on these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from heliostat.train.packing import microbatches, rows_of
from heliostat.train.policy import Policy
from heliostat.types import Batch, Group, Mean


def rollout_means(groups: Sequence[Group]) -> dict[str, Mean]:
    """Means over a step's completions, mergeable over ranks."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    uniform = [len(set(group.rewards)) == 1 for group in groups]
    return {
        "reward/mean": _mean([verdict.reward for verdict in verdicts]),
        "reward/success": _mean([verdict.success for verdict in verdicts]),
        "reward/zero_signal": _mean(uniform),
        "reward/failures": Mean(sum(bool(verdict.failure) for verdict in verdicts), 1),
        "policy/entropy": Mean(float(sum(c.entropy.sum(dtype=np.float64) for c in completions)), sum(lengths)),
        "length/mean": _mean(lengths),
        "length/truncated": _mean([completion.stop_reason.truncated for completion in completions]),
    }


def _mean(values: Sequence[float]) -> Mean:
    return Mean(float(sum(values)), len(values))


@torch.no_grad()
def sequence_log_ratios(
    policy: Policy, batch: Batch, num_groups: int, tokens_per_microbatch: int
) -> tuple[Float[np.ndarray, " sequence"], Float[np.ndarray, " sequence"], Bool[np.ndarray, " sequence"]]:
    """``s`` under the current weights for the batch's first ``num_groups`` groups, with advantage and success.

    The anchor is the sampler's own log-probability, which the sampler-gap metric ties to the trainer's.
    """
    groups = batch.groups[:num_groups]
    log_ratio, advantage, success = [], [], []
    rows = rows_of(groups)
    succeeded = [verdict.success for group in groups for verdict in group.group.verdicts]
    flag = {id(row): value for row, value in zip(rows, succeeded, strict=True)}
    for part in microbatches(rows, tokens_per_microbatch, policy.padded_tokens):
        logp = policy.log_probs(part).double().cpu()
        for row, piece in zip(part, torch.split(logp, [row.num_tokens for row in part]), strict=True):
            log_ratio.append(float(piece.sum()) - float(row.completion.logp_gen.sum(dtype=np.float64)))
            advantage.append(row.advantage)
            success.append(flag[id(row)])
    return np.asarray(log_ratio), np.asarray(advantage), np.asarray(success, dtype=bool)


def mirror_means(
    log_ratio: Float[np.ndarray, " sequence"],
    advantage: Float[np.ndarray, " sequence"],
    success: Bool[np.ndarray, " sequence"],
    tau: float | None,
) -> dict[str, Mean]:
    r"""Numbers of the mirror step from sampled sequence log-ratios.

    With ``rho = e^s`` and advantages ``A = r - mean r``, sample means estimate ``lambda = -E s``, ``E rho``,
    ``chi2 = E rho^2 - 1``, and for PMD the gain identity
    ``KL(new||old) + KL(old||new) + lambda chi2 = (E rho A) / tau``; its left side over its right is ``policy/solved``.

    Limits:
        ``s = 0`` everywhere: lambda and chi-square are 0, the mean ratio is 1, and ``solved`` is undefined (no gain).
        A gain below twice its standard error: ``solved`` is left out, as a share of nothing.

    References:
        Xu, Lu, Yu & Zhao (2026), arXiv 2602.05933; the gain identity is this project's reconstruction.
    """
    if len(log_ratio) == 0:
        return {}
    count = len(log_ratio)
    ratio = np.exp(np.clip(log_ratio, None, 50.0))
    lam = -float(log_ratio.mean())
    chi_square = float((ratio**2).mean() - 1)
    means = {
        "policy/lambda_hat": Mean(lam * count, count),
        "policy/mean_ratio": Mean(float(ratio.sum()), count),
        "policy/chi_square": Mean(chi_square * count, count),
        "policy/log_ratio_correct": Mean(float(log_ratio[success].sum()), int(success.sum())),
        "policy/log_ratio_incorrect": Mean(float(log_ratio[~success].sum()), int((~success).sum())),
    }
    gain = float((ratio * advantage).mean())
    noise = float((ratio * advantage).std() / np.sqrt(count))
    if tau is not None and gain > 2 * noise:
        divergences = float((ratio * log_ratio).mean()) + lam + lam * chi_square
        means["policy/solved"] = Mean(tau * divergences / gain * count, count)
    return means
