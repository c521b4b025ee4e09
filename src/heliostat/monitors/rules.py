"""The signals that the guard monitors, with their detectors and the meaning of an alarm. A rule is one entry of a list.

Levels, mildest first:
    note       printed and logged
    mismatch   sampler and trainer disagree: controllers are frozen during the alarm
    rollback   the run is being damaged: roll back to a checkpoint from before the onset, or stop if that did not help
    broken     the model is lost: the same, also in shadow mode

Thresholds are multiples of the run's own early (or recent) level wherever a level does not carry over from one model to
the next. ``studies/guard`` has the false alarms that remain on recorded healthy runs.

Left out: the detectors (``detectors``), and actions (``guard``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from heliostat.monitors.detectors import Cusum, Detector, Limit, Multiple, Offset, RobustZ
from heliostat.monitors.reference import Reference

Level = Literal["note", "mismatch", "rollback", "broken"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One signal under one detector.

    Attributes:
        name: its name in events.
        key: the metric that it monitors.
        make: builds a new detector.
        level: the action that an alarm asks for.
        meaning: the meaning of an alarm for the run, in one sentence.
        advice: the remedy.
    """

    name: str
    key: str
    make: Callable[[], Detector]
    level: Level
    meaning: str
    advice: str


def default_rules(start: int = 20, size: int = 40) -> tuple[Rule, ...]:
    """Build the guard's rules.

    Args:
        start: steps before the baseline is measured.
        size: steps over which the baseline is measured.
    """

    def early() -> Reference:
        return Reference(size, skip=start)

    def recent() -> Reference:
        return Reference(50, skip=start, rolling=True, least=min(20, size))

    def long() -> Reference:
        return Reference(200, skip=start, rolling=True, least=min(30, size), least_spread=0.01)

    return (
        # -- sampler against trainer: a bug, independent of all other metrics
        Rule(
            "mismatch",
            "mismatch/k3",
            lambda: Multiple(early(), 3.0, floor=1e-3),
            "mismatch",
            "sampler and trainer give the same tokens different probabilities, more so than earlier in this run",
            "compare their numerics (precision, kernels, temperature) and the age of the sampler's weights",
        ),
        Rule(
            "mismatch-chi2",
            "mismatch/chi2_token",
            lambda: Limit(0.1),
            "mismatch",
            "importance weights between sampler and trainer have a large variance",
            "fix the sampler's numerics before touching the objective",
        ),
        Rule(
            "mismatch-ess",
            "mismatch/ess",
            lambda: Limit(0.5, side="low"),
            "mismatch",
            "importance weights between sampler and trainer leave an effective batch of less than half",
            "fix the sampler's numerics or use fresher rollouts",
        ),
        # -- the size of steps
        Rule(
            "wrecked",
            "optim/update_ratio",
            lambda: Limit(1.0),
            "broken",
            "the weights moved further than they are long: nothing of the model is left",
            "lower optimizer.lr",
        ),
        Rule(
            "step-size",
            "optim/update_ratio",
            lambda: Multiple(recent(), 4.0),
            "rollback",
            "the weights moved several times further than in recent steps",
            "lower optimizer.lr or optimizer.max_grad_norm, and look at the batches of these steps",
        ),
        Rule(
            "longer-steps",
            "optim/update_ratio",
            lambda: Multiple(recent(), 2.5, hold=3),
            "rollback",
            "the weights have moved further than in recent steps for several steps in a row",
            "lower optimizer.lr, and look for what changed at the onset",
        ),
        Rule(
            "gradient",
            "optim/grad_norm",
            lambda: Multiple(recent(), 30.0),
            "note",
            "the gradient is many times larger than in recent steps",
            "look at the batches of these steps; clipping shortened them",
        ),
        # -- what the policy is paid
        Rule(
            "reward-falls",
            "reward/mean",
            lambda: Cusum(long(), slack=1.0, threshold=20.0, side="low"),
            "rollback",
            "the reward keeps falling below its recent level",
            "the last steps did damage: lower optimizer.lr, raise objective.tau, or check the verifier",
        ),
        Rule(
            "reward-jumps",
            "reward/mean",
            lambda: RobustZ(Reference(50, start, True, min(20, size), least_spread=0.02), threshold=8.0, side="high"),
            "note",
            "the reward jumped further in one step than this run's noise explains",
            "read transcripts for a shortcut: heliostat tasks audit tries junk on the verifier",
        ),
        Rule(
            "unconfirmed",
            "panel/gap",
            lambda: Offset(Reference(3), 0.15, hold=2),
            "note",
            "reward has risen in training and not on held-out problems",
            "read transcripts for a shortcut past the verifier; with few problems the model may have memorised them",
        ),
        Rule(
            "judge-hacked",
            "judge/hacking",
            lambda: Limit(5.0),
            "note",
            "the judge's score has risen, and right answers do not explain half of the rise",
            "read transcripts for what the judge likes; heliostat tasks audit tries known exploits on it",
        ),
        Rule(
            "no-signal",
            "reward/zero_signal",
            lambda: Limit(0.95, hold=5),
            "note",
            "almost all groups earn the same reward, so there is nothing to learn from",
            "use easier or harder problems, larger groups, or train.focus",
        ),
        # -- entropy and diversity
        Rule(
            "entropy-collapse",
            "policy/entropy",
            lambda: Multiple(early(), 0.15, side="low", floor=0.01, hold=3),
            "note",
            "entropy has fallen to a small share of its early level: the policy has stopped exploring",
            "raise guard.actuator to control it, objective.tau, or clip_high; lower optimizer.lr",
        ),
        Rule(
            "entropy-explosion",
            "policy/entropy",
            lambda: Multiple(early(), 2.5, hold=3),
            "rollback",
            "entropy is several times its early level: the policy is turning to noise",
            "lower optimizer.lr, and look for a reward that does not depend on the answer",
        ),
        Rule(
            "answers-collapse",
            "answers/distinct_correct",
            lambda: Multiple(early(), 0.6, side="low", floor=1.2, hold=3),
            "note",
            "groups find far fewer different right answers than early in the run",
            "pass@k will fall with it: control entropy with guard.actuator",
        ),
        Rule(
            "template",
            "panel/information",
            lambda: Multiple(Reference(1), 0.5, side="low", floor=0.2, hold=2),
            "note",
            "completions depend less on their prompts: one template for everything, whatever the entropy",
            "drop groups of little reward variance; lower optimizer.lr",
        ),
        Rule(
            "pass-k-falls",
            "panel/pass@k",
            lambda: Multiple(Reference(1), 0.7, side="low", floor=0.1, hold=3),
            "note",
            "the chance that one of k samples is right has fallen below where it began",
            "the policy is narrowing: control entropy with guard.actuator",
        ),
        # -- text
        Rule(
            "loops",
            "text/loops",
            lambda: Offset(early(), 0.1, hold=2),
            "note",
            "completions end in loops",
            "read transcripts; lower rollout.max_new_tokens (environment.max_tokens_per_turn for turns) or penalise "
            "truncation",
        ),
        Rule(
            "repetition",
            "text/rep4",
            lambda: Offset(early(), 0.1, hold=3),
            "note",
            "completions repeat themselves more than early in the run",
            "read transcripts; entropy may be fine on average",
        ),
        Rule(
            "truncation",
            "length/truncated",
            lambda: Offset(early(), 0.2, hold=2),
            "note",
            "many more completions are truncated than early in the run",
            "raise rollout.max_new_tokens, or look for loops",
        ),
        Rule(
            "length",
            "length/mean",
            lambda: Multiple(early(), 2.0, hold=2),
            "note",
            "completions are more than twice as long as early in the run",
            "compare reward at equal length",
        ),
        # -- several turns
        Rule(
            "tool-use",
            "agent/valid_calls",
            lambda: Multiple(early(), 0.5, side="low", floor=0.05, hold=3),
            "note",
            "less than half as many turns hold a tool call that works as early in the run",
            "read transcripts: if reward falls too, tool use is collapsing: lower optimizer.lr or raise objective.tau",
        ),
        Rule(
            "repeated-actions",
            "agent/repeated_actions",
            lambda: Offset(early(), 0.15, hold=3),
            "note",
            "many more turns repeat an earlier action of their episode than early in the run",
            "read transcripts: does the environment pay for waiting, or has the model stopped reading its answers?",
        ),
        Rule(
            "empty-actions",
            "agent/empty_actions",
            lambda: Offset(early(), 0.1, hold=3),
            "note",
            "many more turns are empty than early in the run",
            "read transcripts: an empty turn should cost something, or end the episode",
        ),
        Rule(
            "turns-cut",
            "agent/turn_truncated",
            lambda: Offset(early(), 0.2, hold=2),
            "note",
            "many more trajectories end in a truncated turn than early in the run",
            "raise environment.max_tokens_per_turn, or look for loops",
        ),
        Rule(
            "tokens-used-up",
            "agent/out_of_tokens",
            lambda: Offset(early(), 0.2, hold=2),
            "note",
            "many more trajectories use up all of their tokens than early in the run",
            "raise environment.max_tokens, or look for turns without use",
        ),
        # -- data
        Rule(
            "duplicates",
            "text/duplicate_prompts",
            lambda: Limit(0.2, hold=2),
            "note",
            "many of the step's groups share their prompt: the batch is smaller than it looks",
            "check the data for duplicates, or lower train.focus",
        ),
    )
