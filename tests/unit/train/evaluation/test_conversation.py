"""A trajectory as a conversation: every token belongs to one side, in order."""

from dataclasses import replace
from functools import partial

import pytest

from heliostat.models import decode, observation_text
from heliostat.train.evaluation.conversation import Utterance, conversation
from heliostat.train.evaluation.rows import transcript_rows
from heliostat.types import Verdict
from tests.support.trajectories import trajectories
from tests.unit.monitors.test_turns import trajectory


def spelled(ids):
    return " ".join(map(str, ids))


def shouted(ids):
    return spelled(ids) + "!"


def test_turns_and_answers_come_in_order():
    said = conversation(trajectory([5, 6], [7], reward=[0.0, None]), spelled, shouted)
    assert said == [
        Utterance("assistant", "5 6", 2, 0.0),
        Utterance("environment", "100 101!", 2),
        Utterance("assistant", "7", 1),
    ]


def test_an_answer_that_nothing_follows_is_kept():
    cut = trajectory([5], [6])
    assert conversation(
        replace(cut, turns=cut.turns[:1], logp_gen=cut.logp_gen[:1], entropy=cut.entropy[:1]), spelled, shouted
    )[-1] == Utterance("environment", "100 101 6!", 3)


@pytest.mark.slow
def test_a_sampled_trajectory_is_told_whole(nano):
    for group in trajectories(nano, num_prompts=2):
        for completion in group.completions:
            said = conversation(completion, partial(decode, nano), partial(observation_text, nano))
            assert sum(one.tokens for one in said) == len(completion.token_ids)
            assert sum(one.tokens for one in said if one.role == "assistant") == completion.num_sampled


@pytest.mark.slow
def test_rows_of_trajectories_have_turns_and_the_prompt_that_was_read(nano):
    (group,) = trajectories(nano, num_prompts=1)
    judged = replace(group, verdicts=tuple(Verdict(1.0, True) for _ in group.completions))
    alone = replace(
        judged,
        completions=(replace(group.completions[0], turns=(), token_ids=(7,) * group.completions[0].num_sampled),),
    )
    row, plain = (transcript_rows(3, "after", [one], spelled, shouted)[0] for one in (judged, alone))
    assert row["prompt"] == spelled(group.prompt.token_ids)
    assert [turn["role"] for turn in row["turns"]][:2] == ["assistant", "environment"]
    assert "turns" not in plain
    assert plain["prompt"] == group.prompt.problem.question
