"""Stories: the meaning of a run's first finding for the rest of the run, in a sentence or two per kind.

Left out: the finding's own numbers and advice, which stand below it.
"""

from __future__ import annotations

from heliostat.monitors.guard import Finding

STORIES: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"mismatch", "mismatch-chi2", "mismatch-ess", "mismatch-from-the-start"}),
        "It begins with sampler and trainer disagreeing about the same tokens. Everything after that is learned from "
        "the difference between two programs, so repair this first.",
    ),
    (
        frozenset({"not-finite", "skipped-update"}),
        "It begins with numbers that are not finite: one batch or one step broke the arithmetic.",
    ),
    (
        frozenset({"verifier-fails"}),
        "The verifier failed on every completion from the first step that shows it. Rewards say nothing about the "
        "model until it is mended.",
    ),
    (
        frozenset({"verifier-bursts"}),
        "It begins with a burst of verifier failures: completions that nobody judged were paid as if they were wrong.",
    ),
    (
        frozenset({"reward-scale"}),
        "It begins with rewards of another order of magnitude than the objective's settings are made for.",
    ),
    (
        frozenset({"all-cut"}),
        "Every completion was cut off at the token limit from the start, before it could end.",
    ),
    (
        frozenset({"never-ends"}),
        "No completion ended by itself: the model never learned to end its answers, or its end is not recognised.",
    ),
    (
        frozenset({"cut-at-limit"}),
        "It begins with completions that grow up to the token limit and are cut off there.",
    ),
    (
        frozenset({"nothing-solved"}),
        "Nothing was solved from the start, so there was nothing to reinforce: every group agrees that it is wrong, "
        "and the gradient is zero. The policy has not narrowed; it never had a success to learn from.",
    ),
    (
        frozenset({"groups-too-small"}),
        "Groups are so small that most of them agree, and a group that agrees teaches nothing.",
    ),
    (
        frozenset({"hardly-solved"}),
        "Hardly anything is solved, so almost every group agrees that it is wrong and few steps learn anything.",
    ),
    (
        frozenset({"everything-solved"}),
        "Everything was solved from the start, so there was nothing left to learn: every group agrees that it is "
        "right.",
    ),
    (
        frozenset({"same-reward"}),
        "Every completion was paid the same from the start, right or wrong: the reward does not look at the answer.",
    ),
    (
        frozenset({"gradients-enormous"}),
        "One term of the loss outweighs all others from the start, so the steps follow that term and not the rewards.",
    ),
    (
        frozenset({"gradients-tiny"}),
        "Rewards differ and hardly count in the loss from the start, so the steps follow rounding more than rewards.",
    ),
    (
        frozenset({"no-gradient"}),
        "Rewards differ and no gradient arrives: nothing that is trained depends on the loss.",
    ),
    (
        frozenset({"weights-still"}),
        "Gradients arrive and the weights do not move: nothing was trained.",
    ),
    (
        frozenset({"leap"}),
        "It begins with a leap: one step moved the policy so far that what it was sampled from is gone. What follows "
        "is damage done by that step.",
    ),
    (
        frozenset({"step-size", "longer-steps", "gradient", "wrecked"}),
        "It begins with a step much longer than the ones before. What follows is damage done by that step.",
    ),
    (
        frozenset({"reward-vanishes"}),
        "The reward fell to nothing between two steps while the policy stayed as it was. Suspect the verifier and what "
        "it depends on, not the model.",
    ),
    (
        frozenset({"reward-falls-at-once"}),
        "The reward fell to nothing between two steps, and the policy changed with it: one step wrecked what it knew.",
    ),
    (
        frozenset({"duplicates"}),
        "It begins with the data: the same prompts came several times in one batch.",
    ),
    (
        frozenset({"reward-jumps", "unconfirmed"}),
        "It begins with a sudden gain of reward. Read transcripts from there on for a shortcut past the verifier.",
    ),
    (
        frozenset({"entropy-collapse", "answers-collapse", "groups-agree", "no-signal", "pass-k-falls", "template"}),
        "It begins with the policy narrowing: it stopped exploring, so groups agree, rewards agree, and nothing is "
        "left to learn from.",
    ),
    (
        frozenset({"episodes-cut", "turns-cut", "tokens-used-up"}),
        "It begins with the environment's limits: trajectories are cut off before their episode is over.",
    ),
    (
        frozenset({"episodes-fail"}),
        "It begins with the environment: episodes fail there and are left out, so a step learns from the others.",
    ),
    (
        frozenset({"not-understood", "no-valid-calls"}),
        "The model and its environment do not understand each other: actions or calls have the wrong form, so no "
        "answer helps.",
    ),
    (
        frozenset({"tool-use", "repeated-actions", "empty-actions"}),
        "It begins with tool use coming apart: turns without a working call, repeated or empty ones, take its place.",
    ),
    (
        frozenset({"loops", "repetition", "truncation", "length"}),
        "It begins in the text: completions repeat themselves or no longer end.",
    ),
    (
        frozenset({"entropy-explosion", "reward-falls"}),
        "It begins with the policy losing what it knew.",
    ),
)


def story_of(finding: Finding) -> str:
    """Return the story that begins with a finding, or the finding's own meaning where there is none."""
    return next((story for rules, story in STORIES if finding.rule in rules), finding.meaning)
