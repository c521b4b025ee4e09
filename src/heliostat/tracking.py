"""Metrics: the declaration of each, and ``metrics.jsonl``, to which every run writes them.

A key that is not declared in ``METRICS`` is refused, so the docs, the report and the log cannot disagree. Each step
appends and flushes one line. A resumed run first removes the lines after its checkpoint.

Left out: TensorBoard and hosted services (``trackers``), console progress (``train.console``), pages (``report``), and
aggregation over steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from heliostat.arguments import PathArg, as_path
from heliostat.config import nearest
from heliostat.storage import append_rows, keep_rows, read_rows


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric: its unit and its definition."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "reward/mean": Metric("reward", "mean reward over this step's sampled completions"),
    "reward/success": Metric("fraction", "share of completions that every verifier gave full marks"),
    "reward/zero_signal": Metric("fraction", "share of groups whose completions all earned the same reward"),
    "reward/failures": Metric(
        "count", "completions on which a verifier failed (timeout, exception, NaN, wrong length)"
    ),
    "reward/completions": Metric("count", "completions that this step sampled and verified"),
    "policy/entropy": Metric("nats/token", "mean entropy of the distributions that completion tokens were drawn from"),
    "policy/lambda_hat": Metric(
        "nats",
        "minus the mean sequence log-ratio log(new/old) on the batch after its updates; at PMD-mean's optimum "
        "this is KL(old || new), the weight of the chi-square term",
    ),
    "policy/log_ratio_correct": Metric("nats", "mean sequence log-ratio of successful completions after the updates"),
    "policy/log_ratio_incorrect": Metric("nats", "mean sequence log-ratio of the others after the updates"),
    "policy/max_log_ratio": Metric("nats", "largest absolute sequence log-ratio after the updates"),
    "policy/mean_ratio": Metric("ratio", "mean of new/old over sampled sequences; 1 up to sampling error"),
    "policy/chi_square": Metric("ratio", "mean of (new/old - 1)^2 over sequences: estimate of chi-square(new, old)"),
    "policy/ratio_correct": Metric("ratio", "mean of new/old over successful completions"),
    "policy/ratio_incorrect": Metric("ratio", "mean of new/old over the others"),
    "policy/chi_square_correct": Metric("ratio", "mean of (new/old - 1)^2 over successful completions"),
    "policy/chi_square_incorrect": Metric("ratio", "mean of (new/old - 1)^2 over the others"),
    "policy/solved": Metric(
        "fraction",
        "share of the step's gain that the mirror step's divergences account for: "
        "(KL + reverse KL + lambda chi-square) * tau / gain; 1 where the subproblem is solved",
    ),
    "policy/solved_correct": Metric("fraction", "the same share over successful completions alone"),
    "policy/solved_incorrect": Metric("fraction", "the same share over the others alone"),
    "policy/entropy_thought": Metric("nats/token", "mean entropy of the tokens before the answer"),
    "policy/entropy_answer": Metric("nats/token", "mean entropy of the answer's tokens"),
    "policy/renyi2": Metric("nats/token", "minus the logarithm of the mean probability of the tokens that were drawn"),
    "policy/saturated": Metric("fraction", "share of drawn tokens whose probability was above 99%"),
    "policy/entropy_drift": Metric(
        "nats", "minus the covariance of token log-probability and advantage: where the batch pushes entropy"
    ),
    "policy/sampler_gap": Metric("nats", "largest |logp_gen - logp_old| over tokens: sampler against trainer"),
    "policy/staleness_steps": Metric(
        "steps", "age in steps of the weights that sampled this step's rollouts; at most rollout.max_staleness"
    ),
    "teacher/kl": Metric(
        "nats/token", "mean of logp_new - logp_teacher over sampled tokens, over the step's updates: KL to the teacher"
    ),
    "teacher/distance": Metric(
        "nats/token", "mean of the distance that teacher.kind names, over the step's updates; sampled: as teacher/kl"
    ),
    "teacher/calls": Metric("count", "requests to the teacher's server in this step"),
    "teacher/tokens": Metric("tokens", "tokens of the sequences that the teacher's server read in this step"),
    "teacher/cached": Metric("count", "different completions of this step that the teacher's server had read before"),
    "judge/score": Metric("score", "mean score of the judge over completions, before judge.weight"),
    "judge/right": Metric("score", "mean score of completions that verifiers or an environment count as solved"),
    "judge/wrong": Metric("score", "mean score of completions that they do not count as solved"),
    "judge/unscored": Metric("fraction", "share of completions without a score, which left their groups"),
    "judge/calls": Metric("count", "questions sent to the judge's server for this step"),
    "judge/cached": Metric("count", "questions of this step that were asked before, and not sent again"),
    "judge/failed": Metric("count", "questions of this step without a reply that gives a score"),
    "judge/tokens": Metric("tokens", "prompt and reply tokens of this step's questions, as the server counts them"),
    "judge/cost": Metric("currency", "cost of the judge's tokens in this run so far, by the prices of the recipe"),
    "judge/hacking": Metric(
        "ratio",
        "standard errors by which the score has risen, and by which success explains less than half of that: the lower",
    ),
    "mismatch/k1": Metric("nats/token", "mean of logp_gen - logp_train: KL of sampler to trainer, unbiased"),
    "mismatch/k3": Metric(
        "nats/token", "mean of e^d - d - 1 with d = logp_train - logp_gen: the same KL, never negative"
    ),
    "mismatch/chi2_token": Metric("ratio", "mean of (e^d - 1)^2 over tokens: chi-square of trainer to sampler"),
    "mismatch/chi2_sequence": Metric("ratio", "the same over whole completions"),
    "mismatch/ess": Metric("fraction", "share of the batch that sequence importance weights would leave"),
    "answers/collision": Metric("fraction", "chance that two completions of a group give the same answer, unbiased"),
    "answers/effective": Metric("count", "effective number of answers: one over the chance that two agree"),
    "answers/top_share": Metric("fraction", "share of a group's most frequent answer"),
    "answers/distinct_correct": Metric("count", "different right answers in groups that found one"),
    "text/rep4": Metric("fraction", "share of a completion's 4-grams that it has written before"),
    "text/loops": Metric("fraction", "share of completions that end in a loop of at most 64 tokens"),
    "text/distinct1": Metric("fraction", "different tokens of a group over its tokens; falls with length"),
    "text/distinct4": Metric("fraction", "different 4-grams of a group over its 4-grams; falls with length"),
    "text/zlib": Metric("fraction", "size of a group's text after compression over its size before"),
    "text/duplicate_prompts": Metric("fraction", "share of the step's groups whose prompt came before in the step"),
    "length/mean": Metric("tokens", "mean completion length"),
    "length/max": Metric("tokens", "longest completion"),
    "length/truncated": Metric("fraction", "share of completions cut off by the token budget or the context window"),
    "agent/turns": Metric("count", "mean number of sampled turns of a trajectory"),
    "agent/calls": Metric("count", "mean number of tool calls of a trajectory"),
    "agent/valid_calls": Metric("fraction", "share of turns with a tool call that worked"),
    "agent/call_errors": Metric("fraction", "share of tool calls that were refused or failed"),
    "agent/invalid": Metric("fraction", "share of turns that the environment could not understand"),
    "agent/empty_actions": Metric("fraction", "share of turns without any text"),
    "agent/repeated_actions": Metric("fraction", "share of turns equal to an earlier turn of the same episode"),
    "agent/turn_truncated": Metric("fraction", "share of trajectories that ended in a turn cut off by its budget"),
    "agent/out_of_tokens": Metric(
        "fraction", "share of trajectories that used up environment.max_tokens or the context window"
    ),
    "agent/out_of_turns": Metric("fraction", "share of trajectories that used up environment.max_turns"),
    "agent/environment_tokens": Metric("fraction", "share of the tokens after the prompt that the environment wrote"),
    "agent/entropy": Metric(
        "nats/token", "mean entropy of sampled tokens by turn: agent/entropy:1, :2, :3, and :4+ for all later turns"
    ),
    "agent/log_ratio": Metric(
        "nats",
        "mean absolute log-ratio log(new/old) of a turn after the updates, by turn; those of a trajectory add up",
    ),
    "agent/sampler_gap": Metric("nats/token", "mean |logp_gen - logp_old| over tokens, by turn"),
    "agent/failed": Metric("fraction", "share of the step's episodes that could not be scored"),
    "agent/refused_replays": Metric(
        "count", "prompts whose stored turns the environment answered otherwise than before"
    ),
    "loss/objective": Metric("loss", "the objective's loss, averaged over the step's updates"),
    "loss/clipped": Metric("fraction", "share of tokens or sequences whose gradient the objective's clip removed"),
    "loss/covariance_clipped": Metric("fraction", "share of tokens whose gradient the guard's covariance clip removed"),
    "loss/sft": Metric("nats/token", "supervised cross-entropy of the warm start"),
    "optim/grad_norm": Metric("norm", "global gradient norm before clipping, averaged over the step's updates"),
    "optim/head_grad_norm": Metric(
        "norm",
        "norm of the output head's gradient before clipping, averaged over the step's updates; left out where the head "
        "is not trained",
    ),
    "optim/update_ratio": Metric("ratio", "norm of the step's change of the weights over the norm of the weights"),
    "optim/lr": Metric("rate", "learning rate of the step's last update"),
    "optim/bad_steps": Metric("count", "updates skipped so far because the loss or gradient was not finite"),
    "eval/pass@1": Metric("fraction", "held-out success rate of one sampled completion"),
    "eval/pass@1_low": Metric("fraction", "lower end of its 95% interval over problems"),
    "eval/pass@1_high": Metric("fraction", "upper end of its 95% interval over problems"),
    "eval/pass@k": Metric("fraction", "held-out chance that at least one of k sampled completions succeeds, unbiased"),
    "eval/reward": Metric("reward", "held-out mean reward"),
    "eval/greedy": Metric("fraction", "held-out success rate of greedy decoding"),
    "panel/calibration": Metric(
        "nats/token",
        "entropy minus cross-entropy on held-out worked solutions; below 0 the policy is overconfident; left "
        "out in an environment",
    ),
    "panel/calibration_own": Metric(
        "nats/token", "entropy along the policy's own completions minus cross-entropy on held-out worked solutions"
    ),
    "panel/information": Metric(
        "nats",
        "information of a completion about its prompt (8 prompts; at most log 8); near 0: one answer for all",
    ),
    "panel/pass@1": Metric("fraction", "success rate of one sampled completion on the guard's panel"),
    "panel/pass@k": Metric("fraction", "chance that one of the panel's k samples succeeds, unbiased"),
    "panel/greedy": Metric("fraction", "success rate of greedy decoding on the guard's panel"),
    "panel/reward": Metric("reward", "mean reward of sampled completions on the guard's panel"),
    "panel/gap": Metric(
        "reward",
        "training reward since the last panel minus the panel's: the part that held-out problems do not confirm",
    ),
    "feedback/statistic": Metric("value", "the statistic of the model's own text that supervised steps hold"),
    "feedback/target": Metric("value", "the value at which supervised steps hold that statistic"),
    "feedback/output": Metric("fraction", "output of the feedback's controller, as a fraction of its actuator's range"),
    "guard/alarms": Metric("count", "rules of the guard whose alarm is up"),
    "guard/rollbacks": Metric("count", "times the run has gone back to a checkpoint so far"),
    "guard/step_scale": Metric("fraction", "the guard's factor on this step's learning rate"),
    "guard/entropy_target": Metric("nats/token", "the entropy that the guard's controller aims at"),
    "guard/output": Metric("fraction", "output of the guard's controller, as a fraction of its actuator's range"),
    "guard/setting": Metric("value", "value of the actuated setting in the next step"),
    "time/rollout": Metric(
        "seconds", "wall time of sampling, or of waiting for sampling that runs in parallel with training"
    ),
    "time/ahead": Metric("seconds", "wall time that sampling this step's rollouts took in its own thread"),
    "time/verify": Metric("seconds", "wall time of verification beyond what ran during sampling"),
    "time/update": Metric("seconds", "wall time of forward, backward and optimizer"),
    "time/teacher": Metric("seconds", "wall time of waiting for a teacher's server"),
    "time/eval": Metric("seconds", "wall time of evaluation"),
    "time/total": Metric("seconds", "wall time since the run started, earlier sessions included"),
    "speed/rollout_tokens": Metric("tokens/second", "sampled tokens per second of sampling"),
    "speed/step_tokens": Metric("tokens/second", "sampled tokens per second of the whole step"),
    "compute/rollout_flops": Metric("FLOP", "floating-point operations of sampling so far"),
    "compute/update_flops": Metric("FLOP", "floating-point operations of training so far"),
    "compute/judge_flops": Metric("FLOP", "floating-point operations of the reward model so far"),
    "compute/teacher_flops": Metric("FLOP", "floating-point operations of the teacher so far"),
    "compute/teacher_tokens": Metric(
        "tokens", "tokens that a teacher on a server has read so far; its FLOPs are not known, and in no total"
    ),
    "compute/collection_flops": Metric("FLOP", "floating-point operations of collecting the traces"),
    "compute/total_flops": Metric("FLOP", "the sum of these and of the warm start so far, without evaluations"),
    "compute/unshared_flops": Metric("FLOP", "the same total if every completion had computed its own prompt"),
    "prefix/success": Metric("fraction", "share of completions after a prefix that every verifier gave full marks"),
    "prefix/success_without": Metric("fraction", "the same share of this step's completions without a prefix"),
    "prefix/share": Metric("fraction", "mean share of a stored solution that prefixed prompts were given"),
    "compute/tokens": Metric("tokens", "completion tokens sampled for training so far"),
}


def check_key(key: str) -> None:
    """Refuse a metric that is not declared.

    ``area/quantity`` also declares ``area/quantity:name``.

    Raises:
        KeyError: the metric is not declared; the message names the closest one that is.
    """
    if key not in METRICS and key.partition(":")[0] not in METRICS:
        raise KeyError(f"metric '{key}' is not declared in heliostat.tracking.METRICS{nearest(key, METRICS)}")


class Tracker(Protocol):
    """A destination of metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def rewind(self, last_step: int) -> None:
        """Remove steps after ``last_step``, from which the run continues, where that is possible."""

    def close(self) -> None: ...


class JsonlTracker:
    """A tracker that writes JSON lines, ``{"step": 3, "reward/mean": 0.41}``; non-finite values become ``null``."""

    def __init__(self, path: PathArg) -> None:
        self.path = as_path(path)
        append_rows(self.path, ())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line and flush it to the operating system."""
        for key in values:
            check_key(key)
        append_rows(self.path, [{"step": step} | {key: _finite(value) for key, value in values.items()}], sync=False)

    def rewind(self, last_step: int) -> None:
        rewind(self.path, last_step)

    def close(self) -> None:
        """Do nothing, since no file is open between lines."""


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def read_metrics(path: PathArg) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines; unreadable rows (of a killed run, for example) are skipped."""
    yield from read_rows(as_path(path)).rows


def rewind(path: PathArg, last_step: int) -> None:
    """Remove rows after ``last_step`` or without a step, atomically, so that a resumed run writes them again."""
    keep_rows(as_path(path), lambda row: isinstance(row.get("step"), int) and row["step"] <= last_step)
