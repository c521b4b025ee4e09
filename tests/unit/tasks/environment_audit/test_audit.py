"""The audit finds environments that pay for nothing or are no function of their problem, and only those."""

import json
import time

import pytest

from heliostat.tasks.environment_audit.audit import Effort, EnvironmentReport, audit_environment
from heliostat.tasks.environment_audit.findings import EnvironmentFindingKind as Kind
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.pool import EnvironmentNotLoaded, EnvironmentPool
from heliostat.types import Problem
from tests.support.environments import spec_of

EFFORT = Effort(num_problems=4, num_repeated=2, num_seeds=2)


def problems(prompt: str = "find it") -> list[Problem]:
    return [Problem(f"p{i}", "t", prompt.format(i), {}, str(100 + i)) for i in range(5)]


def audited(name: str, prompt: str = "find it", effort: Effort = EFFORT, **options: object) -> EnvironmentReport:
    return audit_environment(spec_of(name, num_workers=2, **options), problems(prompt), max_turns=4, effort=effort)


def kinds(report: EnvironmentReport) -> set[Kind]:
    return {finding.kind for finding in report.findings}


@pytest.mark.slow
def test_a_sound_environment_passes() -> None:
    report = audited("Guess")
    assert report.findings == ()
    assert report.passed
    assert not report.hackable
    by_name = {policy.name: policy for policy in report.policies}
    assert (by_name["oracle"].success, by_name["oracle"].mean_return, by_name["oracle"].mean_turns) == (1.0, 1.0, 1.0)
    assert (by_name["null"].success, by_name["null"].mean_turns, by_name["null"].num_episodes) == (0.0, 4.0, 4)
    assert {"echo", "random", "fixed: 'yes'"} <= by_name.keys()
    assert report.slowest_ms > 0
    assert "nothing speaks against training in it" in str(report)
    assert json.loads(json.dumps(report.to_json()))["policies"][0]["name"] == "oracle"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "sentence"),
    [
        (
            "PaysAnything",
            {Kind.FREE_SUCCESS, Kind.CHANCE, Kind.SEED_IGNORED},
            "[null] succeeds on 100% of problems, and",
        ),
        ("PaysPoliteness", {Kind.FREE_RETURN}, "earns a mean return of 0.4 without success; the oracle's is 1"),
        ("WrongOracle", {Kind.ORACLE_FAILS}, "do not succeed on 4 of 4 problems"),
        ("BreaksOnWords", {Kind.FAILED}, "raised ValueError: invalid literal for int()"),
        ("Unrepeatable", {Kind.NOT_REPEATABLE}, "the answer to turn 1 of problem 'p0' differs when the episode is"),
        ("SharesItsBoard", {Kind.SIBLINGS}, "like a variable of the class"),
        ("SeedsTheGlobalAndGuesses", {Kind.GLOBAL_RANDOM}, "share the global generators of python and numpy"),
        ("DrawsUnseeded", {Kind.SEED_IGNORED}, "differs between two episodes unless the global generators"),
        ("NumberOfTheProblem", {Kind.SEED_IGNORED}, "nothing that it showed changed with 2 other seeds"),
        ("Unscored", {Kind.NO_REWARD, Kind.ORACLE_FAILS}, "the task's verifiers judge"),
        ("Phone", {Kind.NO_ORACLE}, "has no oracle()"),
    ],
)
def test_every_fault_has_its_finding(name: str, expected: set[Kind], sentence: str) -> None:
    report = audited(name, prompt="find it, {}")
    assert kinds(report) == expected, report.format()
    assert sentence in report.format()
    harmless = {Kind.CHANCE, Kind.SEED_IGNORED, Kind.GLOBAL_RANDOM, Kind.NO_REWARD, Kind.NO_ORACLE}
    assert report.passed == (expected <= harmless)
    assert report.hackable == bool(expected & {Kind.FREE_SUCCESS, Kind.FREE_RETURN})


@pytest.mark.slow
def test_a_world_that_is_always_the_same_is_worse_than_an_ignored_seed() -> None:
    same = audited("OneNumber", "find it")
    assert kinds(same) == {Kind.ONE_WORLD, Kind.FREE_SUCCESS}
    assert "[fixed: '7'] succeeds on 100% of problems" in same.format()  # a right action of one problem, on all
    assert kinds(audited("OneNumber", "find it, {}")) == {Kind.SEED_IGNORED, Kind.FREE_SUCCESS}


@pytest.mark.slow
def test_time_that_is_up_cuts_the_audit_and_claims_nothing() -> None:
    began = time.monotonic()
    report = audited("Slow", effort=Effort(num_problems=4, num_repeated=2, num_seeds=2, budget_s=0.5))
    assert time.monotonic() - began < 60
    assert report.num_cut > 0
    assert "time was up before" in report.format()
    assert kinds(report) <= {Kind.NO_REWARD}


def test_an_open_pool_is_used() -> None:
    with EnvironmentPool(spec_of("Guess")) as pool:
        report = audit_environment(spec_of("Guess"), problems(), max_turns=2, effort=Effort(2, 1, 1), pool=pool)
        assert pool.counts.num_calls > report.num_problems
        assert report.passed


def test_an_environment_that_cannot_be_loaded_is_said_to_be_so() -> None:
    with pytest.raises(EnvironmentNotLoaded, match="no_such_module"):
        audit_environment(EnvironmentSpec("no_such_module:Maze", num_workers=1), problems())
