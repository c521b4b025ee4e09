"""Every reasoning-gym data set that generates offline goes through loading, judging and a small audit."""

from pathlib import Path

import pytest

from heliostat.config import TaskSection
from heliostat.tasks import VerifierPool, audit, list_tasks, load_task
from heliostat.tasks.reward_audit.audit import FindingKind

SKIPPED = {
    "composite": "needs settings that name other tasks (test_loading has them)",
    "knight_swap": "1.7 s a problem",
    "sokoban": "0.05 to 5 s a problem",
    "zebra_puzzles": "0.16 s a problem",
    "intermediate_integration": "0.15 s a problem, 0.06 s a verdict",
}
NO_ORACLE = {"boxnet", "rush_hour"}

# Scorers that pay for answers which solve nothing, or break on some; each is worth a look before training on it.
PAYS_FOR_ANYTHING = {"game_of_life_halting"}
PAYS_FOR_NAN = {"complex_arithmetic"}
READS_THE_FIRST_NUMBER = {"gsm_symbolic"}
RAISES_ON_JUNK = {"boxnet", "coin_flip", "game_of_life", "prime_factorization"}


@pytest.mark.slow
def test_every_data_set_loads_judges_and_is_audited(tmp_path: Path) -> None:
    names = [name for name in list_tasks() if name.removeprefix("reasoning-gym/") not in SKIPPED]
    assert len(names) > 95
    tasks = [load_task(TaskSection(name=name, num_train=3, num_heldout=1, timeout_s=20.0), 0) for name in names]
    attack = f"open({str(tmp_path / 'file')!r}, 'w')"
    with VerifierPool(tasks) as pool:
        reports = {task.name.removeprefix("reasoning-gym/"): audit(task, 3, pool) for task in tasks}
        for future in [pool.judge(task.train[0], [attack]) for task in tasks]:
            future.result()
    assert not (tmp_path / "file").exists()

    def found(kind: FindingKind) -> set[str]:
        return {name for name, report in reports.items() if any(finding.kind == kind for finding in report.findings)}

    assert found(FindingKind.ORACLE_REFUSED) == set()
    assert found(FindingKind.NO_ORACLE) == NO_ORACLE
    assert found(FindingKind.VERIFIER_FAILED) == RAISES_ON_JUNK
    assert found(FindingKind.COPY) == PAYS_FOR_ANYTHING
    assert found(FindingKind.FIXED_TEXT) >= PAYS_FOR_ANYTHING | PAYS_FOR_NAN
    assert found(FindingKind.CONTAINMENT) >= PAYS_FOR_ANYTHING | READS_THE_FIRST_NUMBER
