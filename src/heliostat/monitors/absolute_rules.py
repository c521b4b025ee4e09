"""Conditions that need no baseline, causes before consequences. Adding a condition is adding an entry.

    verifiers and lengths       every verdict is a failure, every completion is cut off
    environments                episodes that fail, are cut off or are not understood; calls that never work
    nothing to learn from       nothing solved, everything solved, one reward for all, groups that agree: four causes
    nothing that learns         gradients of zero, weights or a policy that stay
    damage by one step          a leap of the policy, a reward that falls at once

Left out: counting and remembering (``absolute_monitor``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from heliostat.monitors.absolute_monitor import NUM_TOOLS, AbsoluteRule, View, level_of

LEAP_NATS = 5.0
"""A step this many nats long is damage; recorded healthy runs stay below 1.5, and wrecked ones begin at 5."""
LEAP_NATS_PER_TOKEN = 0.1
"""For long completions, whose log-ratios add up."""
FALL = 0.1
"""A reward falls at once where it keeps no more than this share of its level."""
LEARNED = 0.95
"""A run with this share of right completions has learned its task: groups that agree are its success."""
LONGEST_SOLUTION = "task.longest_solution"
LARGE_REWARD = 1e3
LARGE_MISMATCH = 0.02
"""Nats a token between sampler and trainer; other kernels or bfloat16 stay below a tenth of it."""
MANY_FAILED = 0.1
"""Share of episodes; those that fail are rarely a random part of the problems."""
ENORMOUS_GRADIENT, TINY_GRADIENT = 5e3, 1e-4
"""Norms of a gradient that no scale of rewards and penalties near 1 gives."""

NO_SIGNAL = frozenset({"hardly-solved", "same-reward", "groups-agree", "groups-too-small", "no-signal", "no-gradient"})
ABOUT_SIGNAL = (NO_SIGNAL - {"no-gradient"}) | {"nothing-solved", "everything-solved", "reward-scale"}
"""Rules about rewards that teach too little, which mean nothing where a teacher alone trains."""

ABOUT_SUCCESS = frozenset({"nothing-solved", "everything-solved", "hardly-solved"})
"""Rules that take success for the reward, which it is not where a judge gives the reward and verifiers measure."""

OF_COMPARISONS = ABOUT_SUCCESS | {"same-reward"}
"""Rules that take a mean of rewards for what was earned, where completions share out wins among themselves."""

FALLS = frozenset({"reward-falls-at-once", "reward-vanishes", "reward-falls", "hardly-solved", "no-signal"})


_END = "set rollout.stop, or teach the model to end its answers by a warm start (warm_start.num_steps)"


def _said(text: str) -> Callable[[View], str]:
    return lambda _: text


def _whole(value: float, otherwise: str) -> str:
    return otherwise if math.isnan(value) else f"{value:.0f}"


def _of_problems(view: View, quantity: str) -> str:
    """Name the problems of an evaluation, as in ``none of the 20 held-out problems``, or the step's completions."""
    problems, count = view["eval/problems"], view.num_completions
    if not math.isnan(problems):
        return f"{quantity} of the {problems:.0f} held-out problems is solved in {count:.0f} completions"
    return f"{quantity} of the {_whole(count, 'sampled')} completions of a step is right"


def _nothing_advice(view: View) -> str:
    steps = view.setting("warm_start.num_steps")
    more = (
        f"a longer warm start (warm_start.num_steps, now {steps:.0f})"
        if steps > 0
        else "a warm start on worked solutions (warm_start.num_steps = 200)"
    )
    return (
        f"add {more}, or easier problems; if the texts look right, heliostat tasks audit shows which part the verifier "
        "reads"
    )


def _cut_meaning(view: View) -> str:
    longest, mean = view["length/max"], view["length/mean"]
    length = mean if math.isnan(longest) else longest
    at = "" if math.isnan(length) else f" at {length:.0f} tokens"
    share = view["length/truncated"]
    which = "every completion is" if share > 0.999 else f"{share:.0%} of completions are"
    return f"{which} cut off{at} before the end, so an answer that comes last is never read"


def _cut_advice(view: View) -> str:
    limit, longest = view.setting("rollout.max_new_tokens"), view.setting(LONGEST_SOLUTION)
    if longest > limit:
        to = f"{1.25 * longest:.0f}"
        return f"set rollout.max_new_tokens to {to}: the longest worked solution has {longest:.0f} tokens"
    doubled = view["length/max"] if math.isnan(limit) else limit
    to = "" if math.isnan(doubled) else f" to {2 * doubled:.0f}"
    return f"set rollout.max_new_tokens{to}; if they are cut off there too, {_END}"


def _ends_fit(view: View) -> bool:
    """Whether worked solutions are known to end before the limit."""
    return view.setting(LONGEST_SOLUTION) <= view.setting("rollout.max_new_tokens")


def _too_short(view: View) -> bool:
    """Whether the limit is too low: most completions reach it where solutions are known to be longer, else all do."""
    if view.has_turns:
        return False
    longer = view.setting(LONGEST_SOLUTION) > view.setting("rollout.max_new_tokens")
    return view["length/truncated"] > 0.9 if longer else _all_cut(view) and not _ends_fit(view)


def _all_cut(view: View) -> bool:
    return view["length/truncated"] > 0.999 and not view.has_turns


@dataclass(frozen=True, slots=True)
class _Cut:
    """A limit of an environment that ends trajectories before the environment does.

    Attributes:
        key: the share of trajectories that it ended.
    """

    key: str
    setting: str
    meaning: str
    advice: str


_CUTS = (
    _Cut(
        "agent/turn_truncated",
        "environment.max_tokens_per_turn",
        "end in a turn that is cut off{at}, so that its action is never run",
        "set rollout.stop to the text that ends an action, or teach the model to end its turns by a warm start "
        "(warm_start.num_steps)",
    ),
    _Cut(
        "agent/out_of_tokens",
        "environment.max_tokens",
        "use up all tokens after the prompt{at}, the environment's included, before the episode is over",
        "let the environment say less",
    ),
    _Cut(
        "agent/out_of_turns",
        "environment.max_turns",
        "use up all turns{at} before the episode is over",
        "let the environment end its episodes sooner",
    ),
)


def _cut(view: View) -> _Cut | None:
    """Return the limit that ends most trajectories; ``None`` where only evaluations were logged, which do not tell."""
    known = [cut for cut in _CUTS if not math.isnan(view[cut.key])]
    return max(known, key=lambda cut: view[cut.key], default=None)


def _episodes_cut(view: View) -> bool:
    """Whether limits end nearly all trajectories.

    Where some are right or rewards differ, the number of turns may be meant as the end of an episode.
    """
    out_of_turns = 1.0 if _cut(view) is None else view["agent/out_of_turns"]  # an evaluation: it may be all of them
    teaches = view["reward/success"] >= FALL or view["reward/zero_signal"] < 0.9
    meant = out_of_turns if teaches else 0.0
    return view.has_turns and view["length/truncated"] - meant > 0.9


def _episodes_meaning(view: View) -> str:
    cut, share = _cut(view), view["length/truncated"]
    if cut is None:
        return f"{share:.0%} of trajectories are cut off by a limit of the recipe before the episode is over"
    limit = view.setting(cut.setting)
    at = "" if math.isnan(limit) else f" ({cut.setting} = {limit:.0f})"
    return f"{view[cut.key]:.0%} of trajectories {cut.meaning.format(at=at)}"


def _episodes_advice(view: View) -> str:
    cut = _cut(view)
    if cut is None:
        return f"raise {', '.join(one.setting for one in _CUTS[:-1])} or {_CUTS[-1].setting}: transcripts show which"
    limit = view.setting(cut.setting)
    to = "" if math.isnan(limit) else f" to {2 * limit:.0f}"
    return f"raise {cut.setting}{to}, or {cut.advice}"


def _no_valid_calls(view: View) -> bool:
    """Whether calls were made, or tools are there to be called, and no call worked."""
    return view["agent/valid_calls"] == 0 and (view["agent/calls"] > 0 or view.setting(NUM_TOOLS) > 0)


def _failing(view: View) -> str:
    return f": {view.failure}" if view.failure else ""


def _touched(view: View) -> bool:
    """Whether the policy itself has changed in the last steps, and not only its reward."""
    entropies = view.earlier("policy/entropy")
    usual = sum(entropies) / len(entropies) if entropies else math.nan
    now = view["policy/entropy"]
    moved = [view["policy/lambda_hat"], *view.earlier("policy/lambda_hat")]
    return now > 2 * usual or now < 0.5 * usual or any(abs(size) > 1 for size in moved)


def _fell(view: View) -> bool:
    count = view.num_completions
    enough = math.isnan(count) or view.level * count >= 5
    paid_more = view["reward/mean"] > view.reward  # rewarded for something other than right answers
    return view.level >= FALL and enough and level_of(view) <= FALL * view.level and not paid_more


def _fall(view: View) -> str:
    name = "the mean reward" if math.isnan(view["reward/success"]) else "the share of right completions"
    return f"{name} fell from {view.level:.2g} to {level_of(view):.2g} at once"


def _agree_advice(view: View) -> str:
    temperature = view.setting("rollout.temperature")
    now = "" if math.isnan(temperature) else f" (now {temperature:g})"
    return f"raise rollout.temperature{now} or rollout.group_size, or start from a checkpoint that still explores"


def _usual_success(view: View) -> float:
    shares = [*view.earlier("reward/success"), view["reward/success"]]
    return sum(shares) / len(shares)


def _groups_agree(view: View) -> bool:
    shares = [*view.earlier("reward/zero_signal"), view["reward/zero_signal"]]
    return min(shares) > 0.9 and not math.isnan(shares[-1]) and 0.02 < _usual_success(view) < 0.98


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


ABSOLUTE_RULES: tuple[AbsoluteRule, ...] = (
    AbsoluteRule(
        "mismatch-from-the-start",
        "mismatch/k3",
        "note",
        2,
        lambda view: view["mismatch/k3"] > LARGE_MISMATCH,
        lambda view: f"sampler and trainer differ by {view['mismatch/k3']:.2g} nats per token from the first step",
        _said("compare their temperature, precision and weights before anything else: they are not the same policy"),
        frozenset({"mismatch", "mismatch-chi2", "mismatch-ess"}),
        first_only=True,
    ),
    AbsoluteRule(
        "verifier-fails",
        "reward/failures",
        "note",
        1,
        lambda view: view.failed > 0.999,
        lambda view: f"every verdict is a failure of the verifier, so nothing was graded{_failing(view)}",
        _said("fix the verifier, or raise task.timeout_s if it is slow: heliostat tasks audit shows how it fails"),
        NO_SIGNAL | FALLS | {"nothing-solved", "verifier-bursts"},
        evaluated=True,
    ),
    AbsoluteRule(
        "verifier-bursts",
        "reward/failures",
        "note",
        1,
        lambda view: view.failed > 0.1,
        lambda view: (
            f"the verifier failed on {view['reward/failures']:.0f} of {view.num_completions:.0f} completions, which "
            f"were paid as if they were wrong{_failing(view)}"
        ),
        _said(
            "raise task.timeout_s or task.num_workers, or fix the service that the verifier calls; task.on_failure = "
            "'stop' ends a run there"
        ),
        FALLS | {"no-signal"},
        evaluated=True,
    ),
    AbsoluteRule(
        "reward-scale",
        "reward/mean",
        "note",
        1,
        lambda view: abs(view["reward/mean"]) > LARGE_REWARD,
        lambda view: (
            f"rewards are as large as {view['reward/mean']:.3g}, so large that objectives with a temperature treat "
            "them as certain"
        ),
        _said("scale the reward to about 1, or raise objective.tau by the same factor"),
        frozenset({"leap", "gradients-enormous", "gradient"}),
        first_only=True,
    ),
    AbsoluteRule(
        "several-turns",
        "agent/turns",
        "note",
        1,
        lambda view: view.has_turns,
        _said(""),
        _said(""),
        frozenset({"truncation"}),  # it advises a limit that trajectories do not have
        quiet=True,
    ),
    AbsoluteRule(
        "episodes-fail",
        "agent/failed",
        "note",
        1,
        lambda view: view["agent/failed"] > MANY_FAILED,
        lambda view: (
            f"{view['agent/failed']:.0%} of the step's episodes could not be scored, because their environment failed: "
            "they are left out of baseline and loss"
        ),
        _said(
            "the notes of the run say how it failed; raise environment.timeout_s or environment.memory_mb if it is "
            "slow or large"
        ),
    ),
    AbsoluteRule(
        "episodes-cut",
        "length/truncated",
        "note",
        2,
        _episodes_cut,
        _episodes_meaning,
        _episodes_advice,
        NO_SIGNAL | {"nothing-solved", "length", "loops", "repetition", "turns-cut", "tokens-used-up"},
        evaluated=True,
    ),
    AbsoluteRule(
        "not-understood",
        "agent/invalid",
        "note",
        3,
        lambda view: view["agent/invalid"] > 0.9,
        lambda view: f"the environment could not understand {view['agent/invalid']:.0%} of turns",
        _said(
            "describe the form of an action in the prompt (model.system), or teach it by a warm start "
            "(warm_start.num_steps)"
        ),
        NO_SIGNAL | {"nothing-solved", "no-valid-calls"},
    ),
    AbsoluteRule(
        "no-valid-calls",
        "agent/valid_calls",
        "note",
        3,
        _no_valid_calls,
        lambda view: (
            "no turn calls a tool"
            if view["agent/calls"] == 0
            else "no tool call works: every one is refused or fails, so the model never sees a result"
        ),
        _said(
            "show the form of a call in the prompt (model.system), or teach it by a warm start (warm_start.num_steps); "
            "transcripts show the tools' answers"
        ),
        NO_SIGNAL | {"nothing-solved", "tool-use"},
    ),
    AbsoluteRule(
        "all-cut",
        "length/truncated",
        "note",
        2,
        _too_short,
        _cut_meaning,
        _cut_advice,
        NO_SIGNAL | {"nothing-solved", "never-ends", "cut-at-limit", "truncation", "length", "loops", "repetition"},
        first_only=True,
        evaluated=True,
    ),
    AbsoluteRule(
        "gradients-enormous",
        "optim/grad_norm",
        "note",
        3,
        lambda view: view["optim/grad_norm"] > ENORMOUS_GRADIENT,
        lambda view: f"gradients are {view['optim/grad_norm']:.2g} long: one term of the loss dominates all others",
        _said(
            "look at the scale of rewards, objective.tau and objective.kl_ref; clipping leaves that term's direction"
        ),
        frozenset({"gradient"}),
        first_only=True,
    ),
    AbsoluteRule(
        "leap",
        "policy/lambda_hat",
        "rollback",
        1,
        lambda view: view["policy/lambda_hat"] > max(LEAP_NATS, LEAP_NATS_PER_TOKEN * _or_zero(view["length/mean"])),
        lambda view: (
            f"one step moved the policy {view['policy/lambda_hat']:.3g} nats per completion away from the policy that "
            "sampled"
        ),
        _said(
            "lower optimizer.lr tenfold, or raise objective.tau where there is one; optimizer.warmup_steps softens a "
            "first step"
        ),
        FALLS | {"nothing-solved", "step-size", "longer-steps", "gradient", "entropy-explosion"},
    ),
    AbsoluteRule(
        "reward-falls-at-once",
        "reward/success",
        "rollback",
        2,
        lambda view: _fell(view) and _touched(view),
        lambda view: f"{_fall(view)}, and the policy changed with it: a step has damaged it",
        _said("lower optimizer.lr, and look at the batch before the fall"),
        FALLS - {"reward-falls-at-once"} | {"nothing-solved"},
    ),
    AbsoluteRule(
        "reward-vanishes",
        "reward/success",
        "note",
        2,
        _fell,
        lambda view: f"{_fall(view)}, while the policy stayed as it was: the reward changed, not the model",
        _said("check the verifier, the services it calls, and transcripts of that step; the weights are sound"),
        frozenset({"reward-falls", "hardly-solved", "no-signal", "nothing-solved"}),
    ),
    AbsoluteRule(
        "nothing-solved",
        "reward/success",
        "note",
        3,
        lambda view: view.success == 0 and view.uniform and not view["reward/mean"] > 0,
        lambda view: f"{_of_problems(view, 'none')}: there is nothing to reinforce",
        _nothing_advice,
        NO_SIGNAL | {"never-ends", "cut-at-limit", "loops", "repetition"},
        first_only=True,
        evaluated=True,
    ),
    AbsoluteRule(
        "never-ends",
        "length/truncated",
        "note",
        2,
        lambda view: _all_cut(view) and _ends_fit(view),
        lambda view: (
            f"every completion runs into the limit of {view.setting('rollout.max_new_tokens'):.0f} tokens, though the "
            f"longest worked solution has {view.setting(LONGEST_SOLUTION):.0f}: the model does not end its answers"
        ),
        _said(_END),
        frozenset({"cut-at-limit", "truncation", "length", "loops", "repetition"}),
        first_only=True,
        evaluated=True,
    ),
    AbsoluteRule(
        "cut-at-limit",
        "length/truncated",
        "note",
        3,
        lambda view: view["length/truncated"] > 0.9 and not view.has_turns,
        lambda view: (
            f"{view['length/truncated']:.0%} of completions are as long as the limit allows and are cut off there"
        ),
        lambda view: f"read transcripts: is length paid, or do texts loop? If neither, {_cut_advice(view)}",
        frozenset({"truncation", "length"}),
    ),
    AbsoluteRule(
        "everything-solved",
        "reward/success",
        "note",
        3,
        lambda view: view.success > 0.98 and view["reward/zero_signal"] > LEARNED,
        lambda view: f"{_of_problems(view, 'every one')} from the start: there is nothing left to learn",
        _said(
            "take harder problems; if the texts look wrong, the verifier accepts anything: test it with heliostat "
            "tasks audit"
        ),
        NO_SIGNAL,
        first_only=True,
        evaluated=True,
    ),
    AbsoluteRule(
        "learned",
        "reward/success",
        "note",
        1,
        lambda view: view.success >= LEARNED,
        _said(""),
        _said(""),
        frozenset({"no-signal", "entropy-collapse", "answers-collapse"}),
        quiet=True,
    ),
    AbsoluteRule(
        "same-reward",
        "reward/mean",
        "note",
        3,
        lambda view: (
            view.uniform
            and not view.success > 0.02
            and all(math.isclose(mean, view["reward/mean"], rel_tol=1e-6) for mean in view.earlier("reward/mean"))
        ),
        lambda view: (
            f"every completion earns the same {view['reward/mean']:.3g}, whatever it says: the reward tells nothing "
            "apart"
        ),
        _said("compare the verifier's rewards for a right and a wrong answer: heliostat tasks audit"),
        frozenset({"groups-agree", "groups-too-small", "hardly-solved", "no-signal", "no-gradient"}),
        first_only=True,
        evaluated=True,
    ),
    AbsoluteRule(
        "groups-agree",
        "reward/zero_signal",
        "note",
        3,
        _groups_agree,
        lambda view: (
            f"the completions of a group earn the same though {_usual_success(view):.0%} are right: a problem is "
            "solved always or never"
        ),
        _agree_advice,
        frozenset({"no-signal", "no-gradient", "hardly-solved"}),
        first_only=True,
    ),
    AbsoluteRule(
        "groups-too-small",
        "reward/zero_signal",
        "note",
        5,
        lambda view: (
            view.setting("rollout.group_size") <= 4 and view.agreement > 0.8 and 0.02 < _usual_success(view) < 0.98
        ),
        lambda view: (
            f"{view.agreement:.0%} of the groups of {view.setting('rollout.group_size'):.0f} earned the same in the "
            "first steps, so few of them give a gradient"
        ),
        _said("raise rollout.group_size: larger groups hold right and wrong answers more often"),
        frozenset({"no-signal"}),
        first_only=True,
    ),
    AbsoluteRule(
        "hardly-solved",
        "reward/success",
        "note",
        5,
        lambda view: view.success < FALL and view["reward/zero_signal"] > 0.9,
        lambda view: f"only {view.success:.1%} of completions are right, so almost every group is all wrong",
        _said("take easier problems, more warm start, larger groups (rollout.group_size) or train.focus"),
        frozenset({"no-signal"}),
    ),
    AbsoluteRule(
        "no-gradient",
        "optim/grad_norm",
        "note",
        3,
        lambda view: view["optim/grad_norm"] == 0 and not view.uniform,
        _said("every gradient is zero though rewards differ: the trained weights do not affect the loss"),
        _said("check which weights are trained (lora.layers, frozen ones) and what the objective clips away"),
        frozenset({"weights-still"}),
        first_only=True,
    ),
    AbsoluteRule(
        "gradients-tiny",
        "optim/grad_norm",
        "note",
        3,
        lambda view: 0 < view["optim/grad_norm"] < TINY_GRADIENT and not view.uniform,
        lambda view: (
            f"rewards differ and gradients are only {view['optim/grad_norm']:.2g} long: rewards hardly affect it"
        ),
        _said("lower objective.tau, or scale the reward to about 1"),
        first_only=True,
    ),
    AbsoluteRule(
        "weights-still",
        "optim/update_ratio",
        "note",
        3,
        lambda view: view["optim/update_ratio"] < 1e-9 and view["optim/grad_norm"] > 0 and not view.uniform,
        lambda view: f"there are gradients, but the weights do not move (learning rate {view['optim/lr']:.2g})",
        _said("raise optimizer.lr; in bfloat16, steps below the last digit of a weight are lost"),
        frozenset(),
        first_only=True,
    ),
)
"""Every condition, causes first: one that holds hides the rules that it explains."""
