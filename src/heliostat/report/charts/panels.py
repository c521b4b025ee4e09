"""The panels of a page: metrics that are drawn together, their heading, and how a reader should take them.

What a number *is* comes from ``heliostat.tracking.METRICS``; this file adds how to *read* it. A metric that no panel
names is still drawn, under "Everything else that was logged", so a new signal appears without a change here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.monitors.turn_numbers import NUMBERS
from heliostat.report.runs.read import Run, number
from heliostat.tracking import METRICS, Metric


@dataclass(frozen=True, slots=True)
class ChartPanel:
    """One chart of metrics.

    Attributes:
        keys: metrics that share the axis; they must share a unit.
        names: what the lines are called, where there is more than one.
        reading: one plain sentence on how to take the numbers.
        bounds: fixed ends of the axis.
        reference: a level, or the recipe setting that holds it, and what to call it.
        may_log: whether spikes may turn the axis logarithmic.
        warm_start: show the steps before training (zero and below) instead of those of training (zero and above).
    """

    title: str
    keys: tuple[str, ...]
    reading: str
    names: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    reference: tuple[float | str, str] | None = None
    may_log: bool = False
    warm_start: bool = False

    @property
    def unit(self) -> str:
        """The unit all of its metrics share."""
        return declared(self.keys[0]).unit

    @property
    def meaning(self) -> str:
        """The declared meaning of its metrics, as one sentence."""
        parts = list(dict.fromkeys(declared(key).meaning for key in self.keys))
        if self.names and len(parts) == len(self.names):
            parts = [part if name in part else f"{name}: {part}" for name, part in zip(self.names, parts, strict=True)]
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."

    def level(self, run: Run) -> tuple[float, str] | None:
        """Return the reference level with its name, looked up in the recipe where it is a setting.

        A setting of 0 is chosen by the run, which keeps its choice in ``summary.json``; without one there is no level.
        """
        if self.reference is None:
            return None
        level, name = self.reference
        if level == "rollout.max_new_tokens" and run.has_turns:  # which limits nothing there
            return None
        value = run.setting(level) or number(run.summary, "chosen", level) if isinstance(level, str) else level
        return (float(value), name) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class PanelGroup:
    """Panels that answer one question; ``anchor`` is its address in the page and its name in the navigation."""

    anchor: str
    title: str
    intro: str
    panels: tuple[ChartPanel, ...]


LEARNING = PanelGroup(
    "learning",
    "Did it learn?",
    "Held-out problems are never trained on. Thin lines are single steps, thick lines a moving average over them.",
    (
        ChartPanel(
            "Reward",
            ("reward/mean", "eval/reward"),
            "A shaped reward can rise without one more correct answer, so judge success by pass@1.",
            names=("training", "held-out"),
        ),
        ChartPanel(
            "Greedy decoding",
            ("eval/greedy",),
            "If this is far above pass@1, the model knows more than it samples; the two meet as entropy falls.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Warm start: loss",
            ("loss/sft",),
            "Supervised steps count up to step 0, where mirror descent takes over.",
            warm_start=True,
        ),
        ChartPanel(
            "Warm start: the model's own text",
            ("feedback/statistic", "feedback/target"),
            "Supervised steps that hold a statistic of the model's own text: the lines should stay together.",
            names=("measured", "held at"),
            warm_start=True,
        ),
        ChartPanel(
            "Warm start: held-out pass@1",
            ("eval/pass@1",),
            "Checked during the warm start, which ends early once it reaches warm_start.stop_at.",
            bounds=(0.0, 1.0),
            reference=("warm_start.stop_at", "enough"),
            warm_start=True,
        ),
    ),
)

MIRROR = PanelGroup(
    "steps",
    "What each mirror step did",
    "A step samples answers, then moves the policy towards the better ones while a divergence holds it near the old "
    "policy. These numbers compare the policy after a step's updates with the one that sampled its answers.",
    (
        ChartPanel(
            "λ̂: how far each step moved",
            ("policy/lambda_hat",),
            "Near zero nothing was learned from the batch; a steady level is a steady pace; jumps are steps too long "
            "for their anchor. Below zero the batch's answers became more likely on average, right or wrong.",
            reference=(0.0, "no movement"),
        ),
        ChartPanel(
            "Log-ratio of correct and incorrect answers",
            ("policy/log_ratio_correct", "policy/log_ratio_incorrect"),
            "Correct answers belong above zero (more likely than before) and incorrect ones below. If both sink "
            "together, probability leaks to answers that nobody sampled.",
            names=("correct", "incorrect"),
            reference=(0.0, "unchanged"),
        ),
        ChartPanel(
            "χ²: how uneven the step was",
            ("policy/chi_square",),
            "It grows when few answers gain much, as they do when success is rare, and PMD-mean charges λ for it; "
            "a large value means that a handful of samples carried the step.",
            may_log=True,
        ),
        ChartPanel(
            "Mean ratio",
            ("policy/mean_ratio",),
            "Probabilities must still add up to one, so this belongs near 1. Well below, the step moved probability to "
            "answers outside the batch; well above, a few samples dominate.",
            reference=(1.0, "exact"),
        ),
        ChartPanel(
            "Ratio of correct and incorrect answers",
            ("policy/ratio_correct", "policy/ratio_incorrect"),
            "How many times likelier a sampled answer became. Where success is far above τ a finished step has "
            "correct answers near one over their probability and incorrect ones near zero.",
            names=("correct", "incorrect"),
            reference=(1.0, "unchanged"),
            may_log=True,
        ),
        ChartPanel(
            "χ² of correct and incorrect answers",
            ("policy/chi_square_correct", "policy/chi_square_incorrect"),
            "Which class the unevenness sits in. It belongs to the correct answers, which rise; incorrect ones above "
            "one are wrong answers that the step made much likelier.",
            names=("correct", "incorrect"),
            reference=(0.0, "even"),
            may_log=True,
        ),
        ChartPanel(
            "Share of the subproblem solved",
            ("policy/solved",),
            "Below 1 the batch still had gain to give (more updates, or a higher learning rate); above 1 the policy "
            "moved further than the rewards justify.",
            reference=(1.0, "solved"),
            may_log=True,
        ),
        ChartPanel(
            "Share solved for correct and incorrect answers",
            ("policy/solved_correct", "policy/solved_incorrect"),
            "The same identity holds within each class. The class further from 1 is the one that more updates, or "
            "fewer, would change.",
            names=("correct", "incorrect"),
            reference=(1.0, "solved"),
            may_log=True,
        ),
        ChartPanel(
            "Largest log-ratio",
            ("policy/max_log_ratio",),
            "One sequence that moved by many nats in one step is the first sign of an unstable update.",
            may_log=True,
        ),
        ChartPanel(
            "Groups without signal",
            ("reward/zero_signal",),
            "Groups that are all right or all wrong teach nothing. Near 100% the problems are too easy or too hard.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Clipped away",
            ("loss/clipped",),
            "Only clipping objectives discard gradients; a high share means that much of the batch is ignored.",
        ),
    ),
)

HEALTH = PanelGroup(
    "health",
    "Is the policy healthy?",
    "A run can raise its reward and still be on its way to collapse. These are the places where that shows first.",
    (
        ChartPanel(
            "Entropy",
            ("policy/entropy",),
            "A slow decline is normal: the model makes up its mind. Near zero it stops exploring, and learning.",
        ),
        ChartPanel(
            "Completion length",
            ("length/mean", "length/max"),
            "Growth without a rise in pass@1 is rambling; sudden shrinking is often a shortcut to some partial reward.",
            names=("mean", "longest"),
            reference=("rollout.max_new_tokens", "budget"),
        ),
        ChartPanel(
            "Truncated completions",
            ("length/truncated",),
            "A cut-off answer rarely scores. If the share climbs, allow more tokens or look for endless repetition.",
        ),
        ChartPanel(
            "Gradient norm",
            ("optim/grad_norm",),
            "Spikes are batches that would have thrown the weights far off, had clipping not shortened them.",
            reference=("optimizer.max_grad_norm", "clipped above"),
            may_log=True,
        ),
        ChartPanel(
            "Learning rate",
            ("optim/lr",),
            "The schedule as it was applied; read the other curves against it.",
        ),
        ChartPanel(
            "Sampler against trainer",
            ("policy/sampler_gap",),
            "Both must give a token the same probability. Around a millionth is rounding; above the bound the answers "
            "come from another policy than the one being trained, and the run stops.",
            reference=("rollout.max_parity_gap", "bound"),
            may_log=True,
        ),
        ChartPanel(
            "Distance to the teacher",
            ("teacher/kl", "teacher/distance"),
            "It should fall while success rises. If it falls alone, the teacher's style is learned, not its answers.",
            names=("KL, sampled", "what is minimised"),
        ),
        ChartPanel(
            "Score of the judge",
            ("judge/right", "judge/wrong", "judge/score"),
            "Right answers should score higher than wrong ones. If wrong answers rise and success does not, the policy "
            "learns to please the judge.",
            names=("right answers", "wrong answers", "all"),
        ),
        ChartPanel(
            "Objective",
            ("loss/objective",),
            "Rewards are regressed on a moving anchor, so this need not fall; look for explosions, not for progress.",
        ),
    ),
)

_BY_TURN = ("turn 1", "turn 2", "turn 3", "later turns")

TURNS = PanelGroup(
    "turns",
    "What happens in its turns?",
    "Every completion is a trajectory: turns of the model, and between them the environment's answers, which are read "
    "and never trained on.",
    (
        ChartPanel(
            "Turns and calls of a trajectory",
            ("agent/turns", "agent/calls"),
            "Calls that vanish while reward holds were not needed; if reward falls with them, tool use is collapsing.",
            names=("turns", "tool calls"),
            reference=("environment.max_turns", "budget"),
        ),
        ChartPanel(
            "Turns with a call that works",
            ("agent/valid_calls",),
            "The form of a call is learned first. A peak and then a fall is the published way in which tool use ends.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Calls and turns that fail",
            ("agent/call_errors", "agent/invalid"),
            "Errors are answers that the model can learn from, so both should fall.",
            names=("tool calls with an error", "turns not understood"),
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Empty and repeated actions",
            ("agent/empty_actions", "agent/repeated_actions"),
            "A rise means turns without use: the model waits, or does not read its environment's answers.",
            names=("empty", "repeated"),
        ),
        ChartPanel(
            "Trajectories ended by a limit",
            ("agent/turn_truncated", "agent/out_of_tokens", "agent/out_of_turns"),
            "Each has a setting of its own: environment.max_tokens_per_turn, environment.max_tokens and "
            "environment.max_turns.",
            names=("tokens of a turn", "tokens", "turns"),
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Tokens of the environment",
            ("agent/environment_tokens",),
            "They cost compute and context, and no gradient comes from them.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Entropy by turn",
            tuple(f"agent/entropy:{number}" for number in NUMBERS),
            "Turns collapse apart: an entropy near zero in the first one means that all trajectories begin alike.",
            names=_BY_TURN,
        ),
        ChartPanel(
            "Log-ratio by turn",
            tuple(f"agent/log_ratio:{number}" for number in NUMBERS),
            "What a step moves adds up over turns: a temperature that suits one turn is small for many.",
            names=_BY_TURN,
            may_log=True,
        ),
        ChartPanel(
            "Sampler against trainer by turn",
            tuple(f"agent/sampler_gap:{number}" for number in NUMBERS),
            "Growth with the turn points to a cache or a position that is wrong behind the environment's answers.",
            names=_BY_TURN,
            may_log=True,
        ),
        ChartPanel(
            "Episodes that could not be scored",
            ("agent/failed",),
            "Their environment failed. They are no wrong answers: they are in no baseline and no loss.",
            bounds=(0.0, 1.0),
        ),
    ),
)

GUARD = PanelGroup(
    "target",
    "Is it on target?",
    "What the guard watches, and what it turns. The run is compared with its own early steps throughout.",
    (
        ChartPanel(
            "Actuator",
            ("guard/output",),
            "0 leaves the recipe as it is, 1 is as far as the actuator goes. Held at 1, it is too weak for its task.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Different right answers",
            ("answers/distinct_correct", "answers/effective"),
            "Where several answers are right, the first should not fall as reward rises. Where one is, both end at 1.",
            names=("different right answers", "effective number of answers"),
        ),
        ChartPanel(
            "Where the batch pushes entropy",
            ("policy/entropy_drift",),
            "Below zero the batch rewards what was likely already; entropy follows some steps later.",
            reference=(0.0, "no push"),
        ),
        ChartPanel(
            "Sampler against trainer: KL",
            ("mismatch/k3",),
            "Growth is the earliest sign of numerics or weights that drift apart.",
            may_log=True,
        ),
        ChartPanel(
            "Sampler against trainer: what weighting leaves",
            ("mismatch/ess",),
            "Below one half, importance weights would rest on a few completions.",
            bounds=(0.0, 1.0),
        ),
        ChartPanel(
            "Loops and repetition",
            ("text/loops", "text/rep4"),
            "Small and flat is healthy. A rise with steady reward is a reward that does not read to the end.",
            names=("end in a loop", "repeated 4-grams"),
        ),
        ChartPanel(
            "Calibration",
            ("panel/calibration", "panel/calibration_own"),
            "Zero is a policy that is as sure as it is right; below zero it is overconfident on held-out solutions.",
            names=("on held-out solutions", "along its own completions"),
            reference=(0.0, "calibrated"),
        ),
        ChartPanel(
            "Information of a completion about its prompt",
            ("panel/information",),
            "A fall while entropy holds is a template: the same text for every prompt.",
        ),
    ),
)

SPEED = PanelGroup(
    "cost",
    "Where time and compute went",
    "",
    (
        ChartPanel(
            "Sampling speed",
            ("speed/rollout_tokens", "speed/step_tokens"),
            "The gap between the two is what verification, updates and evaluation cost.",
            names=("rollout alone", "whole step"),
        ),
    ),
)

GROUPS = (LEARNING, MIRROR, HEALTH, TURNS, GUARD, SPEED)

# Shown as hero chart, pass@k curve, bars, cards or interval bands, so not repeated as panels of their own.
SHOWN_ELSEWHERE = frozenset(
    {"reward/success", "eval/pass@1", "eval/pass@1_low", "eval/pass@1_high", "eval/pass@k", "time/total"}
    | {f"time/{phase}" for phase in ("rollout", "verify", "teacher", "update", "eval")}
    | {"panel/pass@1", "panel/pass@k", "panel/greedy", "guard/entropy_target"}  # entropy band, reward and coverage
    | {
        f"compute/{name}"
        for name in ("rollout_flops", "update_flops", "teacher_flops", "judge_flops", "total_flops", "tokens")
    }
)


def remaining_panels(runs: Sequence[Run]) -> list[ChartPanel]:
    """Return a plain panel for every declared and logged metric that nothing else on the page shows."""
    shown = SHOWN_ELSEWHERE | {key for group in GROUPS for panel in group.panels for key in panel.keys}
    logged = sorted({key for run in runs for line in run.metrics for key in line} - shown)
    return [ChartPanel(key, (key,), "") for key in logged if key.partition(":")[0] in METRICS]


def declared(key: str) -> Metric:
    """Return the declaration of a metric; ``area/quantity:name`` is declared by ``area/quantity``."""
    return METRICS.get(key) or METRICS[key.partition(":")[0]]
