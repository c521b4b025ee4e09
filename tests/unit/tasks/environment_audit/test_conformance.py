"""The audit of an environment as promises: a shipped one keeps them, and broken ones are told by theirs."""

import sys

import pytest

from heliostat.config import EnvironmentSection
from heliostat.tasks.environment_audit.conformance import LOADS, PROMISES, failures
from heliostat.tasks.environment_audit.findings import EnvironmentFindingKind as Kind


def test_every_finding_that_speaks_against_training_has_a_promise():
    assert set(PROMISES) == {kind for kind in Kind if not kind.harmless}


def test_a_shipped_environment_keeps_them():
    assert set(failures(EnvironmentSection(name="lookup", num_workers=1), 8).values()) == {""}


@pytest.mark.parametrize(
    ("name", "promise"), [("Echo", Kind.ONE_WORLD), ("Fails", Kind.FAILED), ("GivesAway", Kind.FREE_SUCCESS)]
)
def test_broken_ones_are_found(name, promise):
    section = EnvironmentSection(name=f"tests.support.own_judges:{name}", num_workers=1)
    found = failures(section, 4)
    assert found[PROMISES[promise]]
    assert found[LOADS] == ""


def test_one_that_no_process_can_load_says_so(tmp_path, monkeypatch):
    (tmp_path / "only_here_env.py").write_text(
        "import os\nif os.environ.get('HELIOSTAT_VERIFIER_PROCESS'):\n    1 / 0\n"
        "from tests.support.own_judges import Echo\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = failures(EnvironmentSection(name="only_here_env:Echo", num_workers=1), 4)
    sys.modules.pop("only_here_env")
    assert "ZeroDivisionError" in found[LOADS]
    assert all(found.values())
