"""A run is told of its environment's audit, and stopped where members of a group would not see the same world."""

import pytest

from heliostat.config import build_recipe
from heliostat.tasks import EnvironmentReport
from heliostat.tasks.environment_audit.findings import EnvironmentFinding, PolicyResult
from heliostat.tasks.environment_audit.findings import EnvironmentFindingKind as Kind
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.loading import load_task
from heliostat.train.checks.environment_audit import audit_episodes, environment_sentences, reason_against


def report_of(*kinds: Kind, oracle: float = 1.0, num_cut: int = 0) -> EnvironmentReport:
    policies = (
        PolicyResult("oracle", 20, oracle, oracle, 0.0, 2.0, 0),
        PolicyResult("null", 20, 0.0, 0.0, 0.0, 8.0, 0),
    )
    findings = tuple(EnvironmentFinding(kind, f"about {kind}") for kind in kinds)
    return EnvironmentReport("environment 'maze'", 20, 8, policies, findings, 12.3, num_cut)


@pytest.mark.parametrize("kind", [Kind.NOT_REPEATABLE, Kind.SIBLINGS])
def test_a_world_that_siblings_do_not_share_stops_the_run(kind: Kind) -> None:
    reason = reason_against(report_of(Kind.FAILED, kind), build_recipe({}).audit)
    assert reason.startswith(f"environment 'maze': about {kind}. Fix the environment, or go on with --no-audit")
    assert "\n" not in reason


@pytest.mark.parametrize(("oracle", "stops"), [(1.0, False), (0.9, False), (0.85, True), (0.0, True)])
def test_right_actions_that_fail_stop_the_run_above_the_accepted_share(oracle: float, stops: bool) -> None:
    reason = reason_against(report_of(Kind.ORACLE_FAILS, oracle=oracle), build_recipe({}).audit)
    assert bool(reason) == stops
    assert not stops or "of 20 problems within environment.max_turns = 8" in reason


def test_where_a_judge_scores_a_silent_environment_its_right_actions_cannot_fail() -> None:
    section = build_recipe({}).audit
    silent = report_of(Kind.ORACLE_FAILS, Kind.NO_REWARD, oracle=0.0)
    assert reason_against(silent, section)
    assert reason_against(silent.for_a_judge(), section) == ""
    assert silent.for_a_judge().passed
    for speaks in (report_of(Kind.ORACLE_FAILS, oracle=0.0), report_of(Kind.ORACLE_FAILS, Kind.NO_REWARD, oracle=0.5)):
        assert speaks.for_a_judge() is speaks


def test_other_findings_are_warnings_and_notes_are_not_repeated() -> None:
    section = build_recipe({}).audit
    report = report_of(Kind.FREE_RETURN, Kind.ONE_WORLD, Kind.NO_ORACLE, Kind.GLOBAL_RANDOM, num_cut=3)
    assert reason_against(report, section) == ""
    told = environment_sentences(report, 2.0, section)
    assert told[0] == (
        "environment 'maze' audited in 2.0 s: 40 episodes, the slowest call took 12 ms, "
        "return for nothing, and same world for all"
    )
    assert [line.split(" ")[0] for line in told] == ["environment", "warning:", "warning:", "warning:"]
    assert "with 3 episodes not ended" in told[1]
    assert told[2:] == [
        f"warning: {kind} in environment 'maze': about {kind}" for kind in (Kind.FREE_RETURN, Kind.ONE_WORLD)
    ]


def test_the_environment_of_a_recipe_is_audited_in_the_processes_of_its_run() -> None:
    settings = {"environment.name": "tests.support.environments:Guess", "environment.num_workers": 1}
    recipe = build_recipe({**settings, "task.name": "environment", "task.num_train": 4, "environment.max_turns": 2})
    task = load_task(recipe.task[0], 0, recipe.environment)
    with EnvironmentPool(environment_of(recipe.environment)) as pool:
        (report,) = audit_episodes(recipe, [task], pool)
    assert (report.num_problems, report.max_turns, report.passed) == (4, 2, True)
