"""The runs: twenty and more that are wrecked in one way each, and healthy ones that differ in everything else.

Left out: how they are made and recorded (``run``), and what breaks inside a trainer (``faults``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studies.guard.faults import ALWAYS, Install, gradients, longer_steps, one_prompt, stale_weights, verdicts
from studies.wrecks.faults import other_temperature, two_prompts

from heliostat.types import Verdict

BASE: dict[str, Any] = {
    "model.path": "tiny",
    "model.settings": {"hidden_size": 48, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2},
    "run.num_threads": 1, "run.seed": 1,
    "audit.enabled": False,  # it would refuse some of these runs before they are wrecked
    "warm_start.num_steps": 220, "warm_start.batch_size": 32, "warm_start.lr": 5e-3,
    "rollout.prompts_per_step": 16, "rollout.group_size": 8, "rollout.max_new_tokens": 8,
    "rollout.max_parity_gap": 100.0,  # else it would end the runs with a broken sampler before the guard is asked
    "objective.name": "pmd-mean", "objective.tau": 0.3,
    "optimizer.lr": 2e-4, "optimizer.schedule": "constant",
    "train.num_steps": 40, "train.updates_per_step": 2, "train.checkpoint_every": 10, "train.keep_checkpoints": 4,
    "train.try_export": False,
    "eval.every": 0, "eval.final_samples": 4, "eval.num_transcripts": 0,
    "guard.panel_every": 10, "guard.panel_problems": 20, "guard.panel_samples": 4,
}  # fmt: skip


def failing(verdict: Verdict) -> Verdict:
    """The verdict of a verifier that was not done in time."""
    return Verdict(0.0, False, dict.fromkeys(verdict.scores, 0.0), failure="no verdict after 5 s")


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        rule: the rule that should be its first finding; empty: none, the run is healthy.
        data: which problems; see ``run.problems``.
        held_out: made last, its expectation written down before any rule saw it.
    """

    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    data: str = "sums"
    fault: Install | None = None
    window: tuple[int, int] = ALWAYS
    held_out: bool = False


def refuses(verdict: Verdict, text: str, place: int) -> Verdict:
    return dataclasses.replace(verdict, reward=0.0, success=False)


def paid(reward: float, success: bool = False):
    return lambda verdict, text, place: dataclasses.replace(verdict, reward=reward, success=success)


def scaled(factor: float):
    return lambda verdict, text, place: dataclasses.replace(verdict, reward=factor * verdict.reward)


def fails(every: int = 1):
    return lambda verdict, text, place: failing(verdict) if place % every == 0 else verdict


def pays_ones(verdict: Verdict, text: str, place: int) -> Verdict:
    hit = text.strip().startswith("1")
    return dataclasses.replace(verdict, reward=1.0, success=True) if hit else verdict


def pays_length(verdict: Verdict, text: str, place: int) -> Verdict:
    return dataclasses.replace(verdict, reward=verdict.reward + len(text) / 10)


def inverts(verdict: Verdict, text: str, place: int) -> Verdict:
    return dataclasses.replace(verdict, reward=1 - verdict.reward, success=not verdict.success)


NO_WARM_START = {"warm_start.num_steps": 0}
SHORT = {"train.num_steps": 15}
TALK = {"data": "talk", "task": {"answer_after": "Answer:"}}

WRECKS: dict[str, Case] = {
    "no-warm-start": Case("nothing-solved", NO_WARM_START | SHORT),
    "verifier-refuses-all": Case("nothing-solved", SHORT, fault=verdicts(refuses)),
    "wrong-marker": Case("nothing-solved", SHORT, {"answer_after": "#### "}),
    "too-hard": Case("nothing-solved", SHORT | {"warm_start.num_steps": 60, "rollout.max_new_tokens": 10}, data="big"),
    "too-easy": Case("everything-solved", SHORT, data="same"),
    "verifier-pays-all": Case("everything-solved", SHORT, fault=verdicts(paid(1.0, True))),
    "one-reward-for-all": Case("same-reward", SHORT, fault=verdicts(paid(0.5))),
    "verifier-always-fails": Case("verifier-fails", SHORT, fault=verdicts(fails())),
    "verifier-fails-in-bursts": Case("verifier-bursts", {}, fault=verdicts(fails(2)), window=(20, 23)),
    "budget-too-small": Case("all-cut", SHORT | {"rollout.max_new_tokens": 6}, {"answer_after": "Answer:"}, "talk"),
    "never-stops": Case("all-cut", SHORT | {"warm_start.num_steps": 40}, {}, "endless"),
    "lr-zero": Case("weights-still", SHORT | {"optimizer.lr": 1e-30}),
    "gradient-zero": Case("no-gradient", SHORT, fault=gradients(0.0)),
    "lr-100x": Case("leap", {"optimizer.lr": 2e-2, "train.num_steps": 20}),
    "lr-100x-later": Case("leap", {}, fault=longer_steps(100), window=(25, 25)),
    "nan-batch": Case("skipped-update", {}, fault=gradients(float("nan")), window=(15, 15)),
    "nan-forever": Case("skipped-update", {}, fault=gradients(float("nan")), window=(15, 10**9)),
    "stale-weights": Case("mismatch", {"optimizer.lr": 1e-3}, fault=stale_weights(12), window=(20, 32)),
    "wrong-temperature": Case("mismatch", {}, fault=other_temperature(0.5), window=(20, 40)),
    "wrong-temperature-from-the-start": Case("mismatch-from-the-start", {}, fault=other_temperature(0.6)),
    "repeated-prompts": Case("duplicates", {}, fault=one_prompt, window=(18, 30)),
    "one-problem": Case("duplicates", SHORT, {"num_train": 1}),
    "reward-vanishes": Case("reward-vanishes", {}, fault=verdicts(refuses), window=(20, 10**9)),
    "reward-hack": Case(
        "unconfirmed", {"train.num_steps": 90, "optimizer.lr": 1e-3}, fault=verdicts(pays_ones), window=(30, 10**9)
    ),
    "reward-scale": Case("reward-scale", {"train.num_steps": 20}, fault=verdicts(scaled(1e4))),
    "length-is-paid": Case(
        "cut-at-limit",
        {"train.num_steps": 90, "optimizer.lr": 1e-3, "rollout.max_new_tokens": 24, "task.shaped": True},
        fault=verdicts(pays_length),
    ),
    "entropy-collapse": Case(
        "entropy-collapse",
        {"objective.name": "reinforce", "optimizer.lr": 5e-4, "train.num_steps": 80},
        fault=verdicts(pays_ones),
    ),
    "kl-enormous": Case("gradients-enormous", {"objective.name": "grpo", "objective.kl_ref": 1e4}),
    "tau-enormous": Case("gradients-enormous", {"objective.tau": 1e5}),
    "reward-scale-tiny": Case("gradients-tiny", SHORT, fault=verdicts(scaled(1e-6))),
    "groups-of-two": Case("groups-too-small", {"rollout.group_size": 2, "rollout.temperature": 0.2}),
    "cold-sampling": Case("groups-agree", SHORT | {"rollout.temperature": 0.02}),
    "negative-reward-for-all": Case("nothing-solved", SHORT, fault=verdicts(paid(-1.0)), held_out=True),
    "verifier-dies-midway": Case(
        "verifier-fails", {"train.num_steps": 25}, fault=verdicts(fails()), window=(12, 10**9), held_out=True
    ),
    "frozen-weights": Case(
        "weights-still", SHORT | {"objective": {"name": "kimi-k2"}}, fault=longer_steps(0.0), held_out=True
    ),
    "grpo-lr-300x": Case(
        "leap", SHORT | {"objective": {"name": "grpo"}, "optimizer.lr": 6e-2, "run.seed": 3}, held_out=True
    ),
    "one-long-step-of-dapo": Case(
        "leap",
        {"objective": {"name": "dapo"}, "train.num_steps": 25},
        fault=longer_steps(200),
        window=(12, 12),
        held_out=True,
    ),
    "two-prompts": Case("duplicates", SHORT, fault=two_prompts, held_out=True),
    "three-tokens": Case(
        "all-cut", SHORT | {"rollout.max_new_tokens": 3}, {"answer_after": "Answer:"}, "talk", held_out=True
    ),
    "inverted-verifier": Case(
        "unconfirmed", {"train.num_steps": 60, "optimizer.lr": 5e-4}, fault=verdicts(inverts), held_out=True
    ),
    "rollback-loop": Case(
        "step-size",
        {"guard.mode": "act", "train.checkpoint_every": 3, "guard.max_rollbacks": 2},
        fault=longer_steps(1e3),
        window=(25, 10**9),
    ),
}

HEALTHY: dict[str, Case] = {
    "pmd-mean": Case(""),
    "grpo": Case("", {"objective": {"name": "grpo"}, "optimizer.lr": 1e-4}),
    "kimi": Case("", {"objective": {"name": "kimi-k2", "tau": 0.5}}),
    "bfloat16": Case("", {"model.dtype": "bfloat16", "train.num_steps": 25}),
    "lora": Case("", {"lora.rank": 4, "lora.alpha": 32, "optimizer.lr": 2e-3, "train.num_steps": 25}),
    "short": Case("", {"train.num_steps": 12, "run.seed": 4}),
    "rank1": Case("", {"optimizer.name": "rank1", "train.num_steps": 25}),
    "stale-on-purpose": Case("", {"rollout.max_staleness": 1, "train.num_steps": 25, "run.seed": 5}),
    "rloo-long": Case("", {"objective": {"name": "rloo"}, "train.num_steps": 90, "optimizer.lr": 1e-4}),
    "dapo": Case("", {"objective": {"name": "dapo"}, "run.seed": 7, "train.num_steps": 25}, held_out=True),
    "two-digits": Case(
        "",
        {"warm_start.num_steps": 300, "rollout.max_new_tokens": 10, "run.seed": 8, "train.num_steps": 25},
        data="two",
        held_out=True,
    ),
    "bfloat16-lora": Case(
        "",
        {"model.dtype": "bfloat16", "lora.rank": 4, "lora.alpha": 32, "optimizer.lr": 1e-3, "train.num_steps": 25},
        held_out=True,
    ),
    "warm-and-focused": Case(
        "",
        {
            "optimizer.warmup_steps": 10,
            "optimizer.schedule": "cosine",
            "train.focus": 0.3,
            "run.seed": 9,
            "train.num_steps": 25,
        },
        held_out=True,
    ),
}
