"""Metrics of a step: rewards, lengths, entropy, and the distance that the mirror step went.

The metrics of the mirror step compare the policy after the phase with its anchor on (a sample of) the step's own
rollouts: ``s = log pi_new(y|x) - log pi_old(y|x)`` per sequence, ``rho = e^s``. They are sample estimates;
``docs/explanation/theory.md`` gives the value of each at the exact optimum.

Left out: alarms and actions on these metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from heliostat.tasks.judging import JUDGE
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row, microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.rank_sync import RankSync
from heliostat.types import Batch, Group, Mean

OnRow = Callable[[Row, Float[np.ndarray, " token"]], object]


def rollout_means(groups: Sequence[Group]) -> dict[str, Mean]:
    """Compute means over a step's completions, mergeable over ranks."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    completions = [completion for group in groups for completion in group.completions]
    lengths = [completion.num_sampled for completion in completions]
    uniform = [len(set(group.rewards)) == 1 for group in groups]
    return {
        "reward/mean": _mean([verdict.reward for verdict in verdicts]),
        "reward/success": _mean([verdict.success for verdict in verdicts]),
        "reward/zero_signal": _mean(uniform),
        "reward/failures": Mean(sum(bool(verdict.failure) for verdict in verdicts), 1),
        "reward/completions": Mean(len(verdicts), 1),
        "policy/entropy": Mean(float(sum(c.entropy.sum(dtype=np.float64) for c in completions)), sum(lengths)),
        "length/mean": _mean(lengths),
        "length/truncated": _mean([completion.stop_reason.truncated for completion in completions]),
    }


def judge_means(groups: Sequence[Group]) -> dict[str, Mean]:
    """Compute the mean score of a judge, and those of right and wrong completions where verifiers told them apart."""
    scored = [(verdict.scores[JUDGE], verdict) for group in groups for verdict in group.verdicts]
    told = [(score, verdict.success) for score, verdict in scored if verdict.scores.keys() != {JUDGE}]
    return {
        "judge/score": _mean([score for score, _ in scored]),
        "judge/right": _mean([score for score, success in told if success]),
        "judge/wrong": _mean([score for score, success in told if not success]),
    }


def _mean(values: Sequence[float]) -> Mean:
    return Mean(float(sum(values)), len(values))


@torch.no_grad()
def sequence_log_ratios(
    policy: Policy,
    batch: Batch,
    num_groups: int,
    tokens_per_microbatch: int,
    runtime: Runtime,
    on_row: OnRow | None = None,
) -> tuple[Float[np.ndarray, " sequence"], Float[np.ndarray, " sequence"], Bool[np.ndarray, " sequence"]]:
    """Compute ``s`` under the current weights for the batch's first ``num_groups`` groups.

    The anchor is the sampler's own log-probability, which the sampler-gap metric compares with the trainer's. Each rank
    scores a share of the groups, and all ranks get all results.

    Args:
        on_row: called with every row of this rank's share, and the log-ratios of its tokens.

    Returns:
        Log-ratio, advantage and success of each sequence.
    """
    everyone = batch.groups[:num_groups]
    groups = runtime.shard_balanced(everyone, [group.group.num_tokens for group in everyone])
    log_ratio, advantage, success = [], [], []
    rows = rows_of(groups)
    succeeded = [verdict.success for group in groups for verdict in group.group.verdicts]
    flag = {id(row): value for row, value in zip(rows, succeeded, strict=True)}
    parts = microbatches(rows, tokens_per_microbatch, policy.padded_tokens)
    rank_sync = RankSync.for_update(runtime, [], rows_of(everyone), len(parts))
    for part in parts:
        logp = policy.log_probs(part).double().cpu()
        for row, piece in zip(part, torch.split(logp, [row.num_tokens for row in part]), strict=True):
            log_ratio.append(float(piece.sum()) - float(row.completion.logp_gen.sum(dtype=np.float64)))
            if on_row is not None:
                on_row(row, piece.numpy() - row.completion.logp_gen)
            advantage.append(row.advantage)
            success.append(flag[id(row)])
    rank_sync.run_dummy_passes(policy)
    log_ratios, advantages, successes = zip(*runtime.gather((log_ratio, advantage, success)), strict=True)
    return np.concatenate(log_ratios), np.concatenate(advantages), np.concatenate(successes).astype(bool)


def mirror_means(
    log_ratio: Float[np.ndarray, " sequence"],
    advantage: Float[np.ndarray, " sequence"],
    success: Bool[np.ndarray, " sequence"],
    tau: float | None,
) -> dict[str, Mean]:
    r"""Compute the metrics of the mirror step from sampled sequence log-ratios, over all rollouts and for both classes.

    With ``rho = e^s``, sample means estimate ``lambda = -E s``, ``E rho`` and ``chi2 = E (rho - 1)^2``. A regression on
    ``A / tau`` ends where ``s + m rho = A / tau`` for every answer, with ``m = E A / tau - E s``. Multiplied by
    ``rho - 1`` and averaged this is the gain identity,

        ``E (rho - 1)(s + m rho) = E (rho - 1) A / tau``

    whose left side is ``KL(new||old) + KL(old||new) + m chi2``; its left side over its right is ``policy/solved``.
    It holds answer by answer, and therefore separately for correct and incorrect ones.

    Args:
        log_ratio: ``s`` of each sequence; minus infinity is an answer that lost all of its probability.
        advantage: ``A``, over whole groups.
        success: which sequences are correct.
        tau: temperature of a regression on ``A / tau`` (``Objective.regression_tau``); ``None`` for other objectives,
            which have no ``policy/solved``.

    Limits:
        ``s = 0`` everywhere: lambda and chi-square are 0, the mean ratio is 1, and ``solved`` is undefined (no gain).
        A gain below twice its standard error: ``solved`` is left out, since its denominator may be 0. Mean baseline:
        ``m = lambda``. PMD-part at its optimum: ``m = 0``. One class absent: its metrics have count 0.

    References:
        Xu, Lu, Yu & Zhao (2026), arXiv 2602.05933; the gain identity is this project's reconstruction.
    """
    if len(log_ratio) == 0:
        return {}
    ratio = np.exp(np.clip(log_ratio, None, 50.0))
    means = {"policy/lambda_hat": _mean((-log_ratio).tolist()), "policy/mean_ratio": _mean(ratio.tolist())}
    means["policy/chi_square"] = _mean(((ratio - 1) ** 2).tolist())
    classes = {"correct": success, "incorrect": ~success}
    for name, members in classes.items():
        means[f"policy/log_ratio_{name}"] = _mean(log_ratio[members].tolist())
        means[f"policy/ratio_{name}"] = _mean(ratio[members].tolist())
        means[f"policy/chi_square_{name}"] = _mean(((ratio[members] - 1) ** 2).tolist())
    if tau is None or not np.isfinite(log_ratio).all():
        return means
    multiplier = float(advantage.mean()) / tau - float(log_ratio.mean())
    spent = tau * (ratio - 1) * (log_ratio + multiplier * ratio)
    gain = (ratio - 1) * advantage
    for suffix, members in {"": np.ones_like(success), **{f"_{name}": of for name, of in classes.items()}}.items():
        if members.any() and gain[members].mean() > 2 * gain[members].std() / np.sqrt(members.sum()):
            share = float(spent[members].mean() / gain[members].mean())
            means[f"policy/solved{suffix}"] = Mean(share * int(members.sum()), int(members.sum()))
    return means
