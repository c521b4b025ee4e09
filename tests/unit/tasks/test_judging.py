"""The score of a judge as a reward: of completions, and of episodes, whose environment measures."""

import math
from dataclasses import replace

import pytest

from heliostat.tasks import JudgeFailed, Judging, VerifierPool
from heliostat.tasks.judging import JUDGE, JudgeCounts, Mark
from heliostat.tasks.task import ENVIRONMENT
from heliostat.train.update.mirror_metrics import judge_means
from heliostat.types import Group, Problem, Prompt, StopReason, Verdict
from tests.support.tasks import make_task
from tests.unit.monitors.test_turns import trajectory

PROBLEM = Problem("1", "sums", "?", answer="7")


class Scores:
    """A judge with one score for each text, in order."""

    name = "the judge"
    fingerprint = ""

    def __init__(self, *scores):
        self.scores = [Mark(score, "" if score is not None else "it is asleep") for score in scores]

    def begin(self, problem, texts):
        return len(texts)

    def finish(self, tickets):
        left = iter(self.scores)
        return [tuple(next(left) for _ in range(num)) for num in tickets]

    def take_counts(self):
        return JudgeCounts()


def judged(scores, *episodes, verifiers=None, given=(), **settings):
    """Verdicts of episodes with these scores of a judge, as a run gets them."""
    task = replace(make_task(), verifiers=()) if verifiers is None else make_task(*verifiers)
    with VerifierPool([task]) as pool:
        pool.judging = Judging(Scores(*scores), max_unscored=0.9, **settings)
        group = Group(Prompt(PROBLEM, (1, 2), prefix_turns=tuple(given)), episodes)
        (found,) = pool.begin().finish([group])
    return found.verdicts


WON = trajectory([5], [6], [7], reward=[0.25, None, 0.5], success=[None, None, True])
LOST = trajectory([5], [6], reward=[0.25, 0.0], success=[None, False])
CUT = trajectory([5], [6], reason=StopReason.OUT_OF_TURNS)
SILENT = trajectory([5], [6])


def test_a_judge_alone_gives_the_reward_and_the_environment_measures():
    won, lost = judged([0.2, 0.9], WON, LOST, weight=2.0)
    assert (won.reward, lost.reward) == (0.4, 1.8)
    assert (won.success, lost.success) == (True, False)
    assert won.scores == {ENVIRONMENT: 0.75, JUDGE: 0.2}


def test_a_score_is_added_to_an_episodes_return_once_whatever_its_turns():
    won, lost = judged([0.2, 0.9], WON, LOST, weight=2.0, alone=False)
    assert (won.reward, lost.reward) == pytest.approx((0.75 + 0.4, 0.25 + 1.8))
    assert (won.success, lost.success) == (True, False)
    (again,) = judged([0.2], WON, given=WON.turns[:1], alone=False)
    assert again.reward == pytest.approx(0.25 + 0.75 + 0.2), "replayed turns count in the return, and not in the score"


def test_success_is_a_score_only_where_the_environment_ended_an_episode_in_silence():
    good, bad, cut = judged([0.8, 0.4, 0.8], SILENT, SILENT, CUT, success_at=0.7)
    assert (good.success, bad.success) == (True, False)
    assert good.scores == {JUDGE: 0.8}
    assert not cut.success, "a limit ended it, and it may have been about to fail"
    assert cut.scores == {ENVIRONMENT: 0.0, JUDGE: 0.8}
    assert [one.reward for one in (good, bad, cut)] == [0.8, 0.4, 0.8]
    said = trajectory([5], [6], success=[True, None])
    assert judged([0.0], said)[0].success
    assert judged([0.0], SILENT, given=[replace(said.turns[0], success=True)])[0].success, "in a replayed turn"


def test_verifiers_measure_episodes_without_rewards():
    right, wrong = (replace(SILENT, text=text) for text in ("7", "8"))
    found = judged([0.1, 0.9], right, wrong, verifiers=())
    assert [(one.success, one.reward) for one in found] == [(True, 0.1), (False, 0.9)]
    assert found[0].scores == {"exact": 1.0, JUDGE: 0.1}


def test_an_episode_without_a_score_is_unscored_and_never_0():
    won, lost = judged([None, 0.9], WON, LOST, alone=False)
    assert math.isnan(won.reward)
    assert not won.is_scored
    assert won.failure == "it is asleep"
    assert lost.is_scored
    with pytest.raises(JudgeFailed, match=r"scored only 0 of 2 completions, .*it is asleep"):
        judged([None, None], WON, LOST)


def test_the_scores_of_right_and_wrong_episodes_are_told_apart_for_the_alarm():
    verdicts = judged([0.2, 0.9, 0.5], WON, LOST, SILENT)
    means = judge_means([Group(Prompt(PROBLEM, (1,)), (WON, LOST, SILENT), verdicts)])
    assert means["judge/right"].value == 0.2
    assert means["judge/wrong"].value == 0.9
    assert means["judge/score"].value == pytest.approx(1.6 / 3)


def test_without_an_environment_tasks_without_verifiers_are_the_judges():
    said = replace(SILENT, turns=(), token_ids=(5, 6), stop_reason=StopReason.EOS)
    assert judged([0.5], said) == (Verdict(0.5, True, {JUDGE: 0.5}),)
    assert judged([], verifiers=None) == ()
