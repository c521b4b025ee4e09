"""The audit finds rewards that can be had for nothing, and only those."""

import json
from dataclasses import replace

import pytest

from heliostat.config import TaskSection
from heliostat.tasks import VerifierPool, audit, load_task
from heliostat.tasks.reward_audit.audit import AuditReport, Effort, FindingKind
from heliostat.tasks.reward_audit.oracles import oracle_sample
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import Math, Numeric
from heliostat.types import Problem
from tests.support.tasks import EXACT, make_task, reward


def kinds(report: AuditReport) -> set[FindingKind]:
    return {finding.kind for finding in report.findings}


@pytest.mark.slow
@pytest.mark.parametrize("marker", ["", "#"])
def test_strict_verifiers_pass(marker: str) -> None:
    report = audit(make_task(EXACT, WeightedVerifier("numeric", Numeric()), num=20, answer_after=marker))
    assert report.passed, report.format()
    assert not report.hackable
    assert report.num_problems == 20
    assert "no trick worked" in str(report)


@pytest.mark.slow
def test_mathematical_equality_pays_for_a_copied_sum_but_not_for_a_worded_question() -> None:
    task = make_task(WeightedVerifier("math", Math()))
    report = audit(task, num_problems=2)
    assert kinds(report) == {FindingKind.COPY}
    assert "[copied expression] succeeds on 100% of problems" in report.format()
    worded = tuple(replace(problem, prompt="Which number comes next?") for problem in task.train)
    assert audit(replace(task, train=worded), num_problems=2).passed


def test_a_verifier_that_pays_for_anything_is_hackable() -> None:
    report = audit(make_task(reward("always")))
    assert report.hackable
    assert not report.passed
    assert {FindingKind.FIXED_TEXT, FindingKind.CONTAINMENT, FindingKind.COPY} <= kinds(report)
    assert "the reward can be hacked" in report.format()


def test_a_verifier_that_looks_for_the_answer_anywhere_pays_for_lists_of_guesses() -> None:
    report = audit(make_task(reward("contains")))
    assert FindingKind.CONTAINMENT in kinds(report)


def test_partial_credit_counts_only_where_it_is_paid() -> None:
    ignored = audit(make_task(EXACT, reward("half")))
    assert FindingKind.RAW_CREDIT in kinds(ignored)
    assert not ignored.hackable
    paid = audit(make_task(EXACT, reward("half"), shaped=True))
    assert FindingKind.PARTIAL_CREDIT in kinds(paid)
    assert paid.hackable


def test_a_guessable_task_is_found_by_its_own_answers() -> None:
    problems = tuple(Problem(f"p{i}", "sums", f"is {i} even?", {}, ("no", "yes")[i % 2 == 0]) for i in range(10))
    report = audit(make_task(EXACT, train=problems, heldout=problems))
    assert kinds(report) == {FindingKind.FIXED_TEXT}


def test_right_answers_that_are_refused_are_found() -> None:
    report = audit(make_task(reward("half")))
    assert FindingKind.ORACLE_REFUSED in kinds(report)
    assert "8 of 8 oracle answers" in report.format()


def test_problems_without_oracle_answers_are_said_to_be_unchecked() -> None:
    problems = tuple(Problem(f"p{i}", "sums", "q", {}) for i in range(3))
    report = audit(make_task(reward("applies_to_digits"), train=problems, heldout=problems))
    assert {FindingKind.NO_ORACLE, FindingKind.VERIFIER_FAILED} <= kinds(report)


def test_failures_are_counted_even_where_they_would_stop_a_run() -> None:
    report = audit(make_task(reward("chat"), on_failure="stop"))
    assert FindingKind.VERIFIER_FAILED in kinds(report)
    assert "AssertionError" in report.format() or "TypeError" in report.format()


def test_worked_solutions_are_tried_whole() -> None:
    wordy = WeightedVerifier("length", reward("at_least_ten_characters").verifier, sees="completion")
    task = make_task(EXACT, wordy, answer_after="#")
    assert FindingKind.ORACLE_REFUSED in kinds(audit(task))
    worked = tuple(replace(problem, solution=f"Let me see... #{problem.answer}") for problem in task.train)
    assert audit(replace(task, train=worked)).passed


@pytest.fixture(scope="module")
def gym_reports() -> dict[str, AuditReport]:
    def load(name: str, **keys: object) -> Task:
        return load_task(TaskSection(name=f"reasoning-gym/{name}", num_train=20, num_heldout=1, **keys), 0)

    sums = {"solution": "columns", "settings": {"max_terms": 3}}
    tasks = [load("game_of_life_halting"), load("chain_sum", **sums)]
    tasks.append(load("chain_sum", **sums, label="shaped", shaped=True))
    with VerifierPool(tasks) as pool:
        return {task.name: audit(task, pool=pool) for task in tasks}


@pytest.mark.slow
def test_the_scorer_that_pays_for_every_non_empty_text_is_caught(gym_reports: dict[str, AuditReport]) -> None:
    report = gym_reports["reasoning-gym/game_of_life_halting"]
    assert report.hackable
    assert {FindingKind.FIXED_TEXT, FindingKind.COPY} <= kinds(report)


@pytest.mark.slow
def test_chain_sum_is_sound_unless_its_containment_credit_is_paid(gym_reports: dict[str, AuditReport]) -> None:
    assert gym_reports["reasoning-gym/chain_sum"].passed
    shaped = gym_reports["shaped"]
    assert kinds(shaped) == {FindingKind.PARTIAL_CREDIT}
    assert "shaped = true pays it" in shaped.format()


# -- right answers, and time -------------------------------------------------------------------------------------------


def test_refused_answers_are_named_with_what_was_read_and_no_trick_worked_is_not_claimed() -> None:
    task = make_task(WeightedVerifier("numeric", Numeric()), num=8, answer_after="#")
    wrong = tuple(replace(one, answer=f"{one.answer} apples", place="sums.jsonl, line 7") for one in task.train)
    report = audit(replace(task, train=wrong))
    assert len(report.refused) == 8
    said = report.format()
    assert said.splitlines()[0].endswith("right answers are refused")
    assert "no trick worked" not in said
    assert "'0 + 1 =' (sums.jsonl, line 7): of the answer '1 apples' the verifier reads '1 apples'" in said
    assert "the oracle answer '1 apples' is not a number" in said
    assert not report.hackable


def test_an_answer_without_its_marker_is_read_as_nothing() -> None:
    task = make_task(EXACT, answer_after="####")
    lost = tuple(replace(problem, solution=f"so {problem.answer}", answer=None) for problem in task.train)
    (finding,) = [one for one in audit(replace(task, train=lost)).findings if one.kind is FindingKind.ORACLE_REFUSED]
    assert "the verifier reads nothing, because the answer marker is missing" in finding.sentence


def test_a_worked_solution_that_is_refused_is_followed_by_the_answer_alone() -> None:
    task = make_task(EXACT)
    wordy = tuple(replace(problem, solution=f"It is {problem.answer}.") for problem in task.train)
    report = audit(replace(task, train=wordy))
    assert (report.refused, report.num_bare, report.num_oracles) == ((), 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("heldout", [False, True])
def test_right_answers_are_a_sample_drawn_by_the_seed(heldout: bool) -> None:
    task = make_task(EXACT, num=30)
    some = Effort(num_oracles=5, num_problems=2, num_first=2)
    assert audit(task, effort=some, heldout=heldout).num_oracles == 5
    assert audit(task, heldout=heldout).num_oracles == (32 if heldout else 30)
    assert oracle_sample(task.train, 5, 1) == oracle_sample(task.train, 5, 1) != oracle_sample(task.train, 5, 2)


def test_tricks_that_earn_nothing_at_first_are_not_tried_on_the_others() -> None:
    task = make_task(EXACT, reward("contains"), num=20)
    report = audit(task, effort=Effort(num_first=3))
    tried = {probe.name: probe.num_problems for probe in report.probes}
    assert tried["fixed: empty"] == 3
    assert tried["contains: it, then another"] == 20


@pytest.mark.slow
def test_slow_verifiers_are_cut_and_it_is_said() -> None:
    task = make_task(reward("slow", seconds=0.2), num=20)
    report = audit(task, effort=Effort(budget_s=1.0))
    assert 0 < report.num_oracles < 20
    assert report.num_left > 0
    assert f"time was up before {report.num_left} more texts were judged" in report.format()
    with VerifierPool([task]) as pool:  # the audit does not wait for unjudged texts
        audit(task, pool=pool, effort=Effort(budget_s=0.5))
        assert pool.judge(task.train[0], ["1"]).result()[0].success


@pytest.mark.slow
def test_a_shaped_reward_that_is_the_same_for_all_is_a_finding() -> None:
    assert FindingKind.CONSTANT in kinds(audit(make_task(reward("half"), shaped=True)))
    assert FindingKind.CONSTANT not in kinds(audit(make_task(reward("length"), shaped=True)))
    assert FindingKind.CONSTANT not in kinds(audit(make_task(EXACT, shaped=True)))


def test_an_audit_can_be_written_down() -> None:
    report = audit(make_task(reward("half")))
    written = json.loads(json.dumps(report.to_json()))
    assert len(written["refused"]) == report.num_oracles == 8
    assert written["refused"][0]["why"] == "'half' gives 0.5"
