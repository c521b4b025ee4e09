"""A run folder as the trainer would leave it, with a plausible learning curve, made from a seed in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = """
[run]
name = "{name}"
root = "runs"
seed = {seed}
num_threads = 2
deterministic = true

[model]
path = "tiny"
dtype = "auto"

[[task]]
name = "reasoning-gym/chain_sum"
num_train = 4096
num_heldout = 200
min_digits = 2
max_digits = 2

[warm_start]
num_steps = 120
stop_at = 0.4

[rollout]
prompts_per_step = 64
group_size = 8
max_new_tokens = 24
temperature = 1.0
stop = []
max_parity_gap = 0.001

[objective]
name = "{objective}"
tau = {tau}

[optimizer]
name = "adamw"
lr = 0.0003
schedule = "cosine"
max_grad_norm = 1.0

[train]
num_steps = {num_steps}
updates_per_step = 4

[eval]
every = 20
final_samples = 4
"""


@dataclass(frozen=True)
class Shape:
    """How the synthetic run goes."""

    name: str = "demo"
    num_steps: int = 200
    num_warm_start: int = 120
    num_problems: int = 100
    num_samples: int = 4
    seed: int = 0
    start: float = 0.38
    end: float = 0.9
    tau: float = 0.2
    objective: str = "pmd-mean"
    status: str = "finished"


def make_run(folder: Path, shape: Shape = Shape(), text: str | None = None) -> Path:
    """Write the folder; ``text`` replaces every completion, for tests of what untrusted text does."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(shape.seed)
    (folder / "recipe.toml").write_text(
        RECIPE.format(
            name=shape.name, seed=shape.seed, num_steps=shape.num_steps, tau=shape.tau, objective=shape.objective
        )
    )
    versions = {"heliostat": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0",
                "platform": "Linux x86_64", "cpu": "AMD EPYC", "num_threads": 2}  # fmt: skip
    (folder / "versions.json").write_text(json.dumps(versions))
    _write_lines(folder / "metrics.jsonl", _metrics(shape, rng))
    evaluations = list(_evaluations(shape, rng))
    _write_lines(folder / "evals.jsonl", evaluations)
    _write_lines(folder / "transcripts.jsonl", _transcripts(shape, evaluations, text))
    (folder / "summary.json").write_text(json.dumps(_summary(shape, evaluations)))
    return folder


def kill(folder: Path, last_step: int = 70) -> Path:
    """What a SIGKILL after ``last_step`` leaves: no summary, nothing later, and files cut in the middle of a line."""
    (folder / "summary.json").unlink()
    for name in ("metrics.jsonl", "evals.jsonl", "transcripts.jsonl"):
        path = folder / name
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if json.loads(line)["step"] <= last_step]
        path.write_bytes(b"".join(lines)[:-25])
    return folder


def _skill(shape: Shape, step: float) -> float:
    progress = 1 / (1 + math.exp(-6 * (step / max(1, shape.num_steps) - 0.4)))
    first, last = 1 / (1 + math.exp(2.4)), 1 / (1 + math.exp(-3.6))
    return shape.start + (shape.end - shape.start) * (progress - first) / (last - first)


def _metrics(shape: Shape, rng: np.random.Generator) -> Iterable[Mapping[str, Any]]:
    for step in range(-shape.num_warm_start + 1, 1):
        loss = 0.35 + 2.2 * math.exp(-(step + shape.num_warm_start) / 25) + 0.05 * rng.random()
        line = {"step": step, "loss/sft": loss, "optim/lr": 1e-3, "optim/grad_norm": 1.2}
        share = 1 + step / shape.num_warm_start
        yield line | ({"eval/pass@1": shape.start * share, "eval/reward": share} if step % 20 == 0 and step else {})
    for step in range(1, shape.num_steps + 1):
        skill = _skill(shape, step)
        line = {"step": step} | _training(shape, step, skill, rng)
        yield line | (_evaluation(shape, step) if step % 20 == 0 and step < shape.num_steps else {})


def _evaluation(shape: Shape, step: int) -> dict[str, Any]:
    skill = _skill(shape, step) - 0.03 * (step > 0)
    half = 1.96 * math.sqrt(skill * (1 - skill) / shape.num_problems)
    return {"eval/pass@1": skill, "eval/pass@1_low": skill - half, "eval/pass@1_high": skill + half,
            "eval/pass@k": min(1.0, skill + 0.12), "eval/reward": skill + 0.04,
            "eval/greedy": min(1.0, skill + 0.06)}  # fmt: skip


def _training(shape: Shape, step: int, skill: float, rng: np.random.Generator) -> dict[str, Any]:
    success = float(np.clip(skill + 0.035 * rng.standard_normal(), 0, 1))
    spread = 4 * skill * (1 - skill)
    lambda_hat = spread * 0.32 * (1 + 0.2 * rng.standard_normal())
    share = step / shape.num_steps
    return {
        "reward/mean": success + 0.04 + 0.01 * rng.standard_normal(),
        "reward/success": success,
        "reward/zero_signal": float(np.clip(1 - 0.8 * spread + 0.05 * rng.standard_normal(), 0, 1)),
        "reward/failures": 0,
        "policy/entropy": 0.55 * math.exp(-1.8 * share) + 0.02 * rng.random(),
        "policy/lambda_hat": lambda_hat if step != 57 else None,
        "policy/log_ratio_correct": 0.5 * (1 - skill) + 0.05 * rng.standard_normal(),
        "policy/log_ratio_incorrect": -1.1 * skill + 0.1 * rng.standard_normal(),
        "policy/max_log_ratio": 2 + 3 * spread + rng.exponential(1.2),
        "policy/mean_ratio": 1 + 0.03 * rng.standard_normal(),
        "policy/chi_square": spread * 0.4 * math.exp(0.9 * rng.standard_normal()),
        "policy/solved": 0.75 + 0.1 * rng.standard_normal(),
        "policy/sampler_gap": 2e-6 * math.exp(0.6 * rng.standard_normal()),
        "length/mean": 9 + 3 * share + 0.2 * rng.standard_normal(),
        "length/max": 24,
        "length/truncated": float(np.clip(0.08 * math.exp(-4 * share) + 0.004 * rng.standard_normal(), 0, 1)),
        "loss/objective": 0.02 * spread + 0.003 * rng.standard_normal(),
        "optim/grad_norm": (0.4 + spread) * math.exp(0.35 * rng.standard_normal()),
        "optim/lr": 3e-4 * 0.5 * (1 + math.cos(math.pi * share)),
        "optim/bad_steps": 0,
        "time/rollout": 0.62 + 0.05 * rng.random(),
        "time/verify": 0.03,
        "time/update": 0.48 + 0.05 * rng.random(),
        "time/eval": 1.4 if step % 20 == 0 else 0.0,
        "time/total": 70 + 1.3 * step,
        "speed/rollout_tokens": 7800 + 300 * rng.standard_normal(),
        "speed/step_tokens": 4100 + 200 * rng.standard_normal(),
        "compute/rollout_flops": 9.1e9 * step,
        "compute/update_flops": 3.2e10 * step,
        "compute/tokens": 4900 * step,
    }


def _evaluations(shape: Shape, rng: np.random.Generator) -> Iterable[dict[str, Any]]:
    ease = rng.normal(0, 1.4, shape.num_problems)
    for phase, step in (
        ("before", 0),
        *(("during", step) for step in range(20, shape.num_steps, 20)),
        ("after", shape.num_steps),
    ):
        samples = shape.num_samples if phase != "during" else 1
        level = _skill(shape, step)
        logit = 1.35 * math.log(level / (1 - level))
        for index in range(shape.num_problems):
            rate = 1 / (1 + math.exp(-(logit + ease[index])))
            successes = int(rng.binomial(samples, rate))
            yield {"step": step, "phase": phase, "task": "chain_sum", "problem_id": f"chain_sum/heldout/{index}",
                   "num_samples": samples, "num_success": successes, "mean_reward": successes / samples + 0.02,
                   "greedy_success": bool(rate > 0.5) if phase != "during" else None}  # fmt: skip


def _transcripts(shape: Shape, evaluations: list[dict[str, Any]], text: str | None) -> Iterable[dict[str, Any]]:
    for row in evaluations:
        index = int(row["problem_id"].rsplit("/", 1)[1])
        if index >= 12:
            continue
        first, second = 11 + 7 * index, 88 - 5 * index
        success = row["num_success"] > 0
        said = str(first + second if success else first + second - 10)
        yield {"step": row["step"], "phase": row["phase"], "task": row["task"], "problem_id": row["problem_id"],
               "prompt": text or f"State the final answer to the following arithmetic problem: {first} + {second} =",
               "completion": text or f" {first} + {second}: the last digit is {(first + second) % 10}, so {said}",
               "reward": 1.0 if success else 0.05, "success": success,
               "stop_reason": "eos" if success else "max_tokens", "num_tokens": 21,
               "answer": text or str(first + second)} | (_turns(text) if text and index % 2 else {})  # fmt: skip


def _turns(text: str) -> dict[str, Any]:
    return {"turns": [{"role": role, "text": text, "tokens": 3} for role in ("assistant", "environment", "assistant")]}


def _summary(shape: Shape, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    phases = {}
    for phase in ("before", "after"):
        rates = np.array([row["num_success"] / row["num_samples"] for row in evaluations if row["phase"] == phase])
        half = 1.96 * rates.std() / math.sqrt(len(rates))
        phases[phase] = {"pass@1": rates.mean(), "ci95": [rates.mean() - half, min(1.0, rates.mean() + half)],
                         "pass@k": {"1": rates.mean()}, "greedy": min(1.0, rates.mean() + 0.05)}  # fmt: skip
    steps = shape.num_steps
    seconds = {
        "warm_start": 61.2,
        "rollout": 0.645 * steps,
        "verify": 0.03 * steps,
        "update": 0.5 * steps,
        "eval": 14.5,
    }
    return {
        "status": shape.status, "reason": "", "recipe": "demo", "steps": steps, **phases,
        "seconds": seconds | {"total": sum(seconds.values()) + 4.1},
        "flops": {"rollout": 9.1e9 * steps, "update": 3.2e10 * steps, "warm_start": 2.1e12, "eval": 3.3e11},
        "tokens": 4900 * steps, "model": "model", "report": "report.html",
    }  # fmt: skip


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
