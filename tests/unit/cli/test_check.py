"""``heliostat check`` sees the kind of a part, tries its promises, and asks where it cannot see."""

import json

import pytest

from heliostat.cli import main

OWN = "tests.support.own_parts"
JUDGES = "tests.support.own_judges"


def found(capsys, *argv):
    code = main(["check", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "kind", "num"),
    [
        (f"{OWN}:Pull", "objective", 8),
        (f"{OWN}:Sign", "optimizer", 8),
        (f"{OWN}:Lines", "tracker", 5),
        (f"{JUDGES}:digits", "verifier", 5),
        (f"{OWN}:Length", "judge", 8),
        (f"{OWN}:Plain", "engine", 10),
        ("sgd", "optimizer", 8),
        ("exact", "verifier", 5),
    ],
)
def test_the_kind_is_seen_from_the_part(capsys, name, kind, num):
    code, report = found(capsys, name)
    assert (code, report["kind"], report["failed"], len(report["checks"])) == (0, kind, {}, num)


def test_a_broken_promise_is_explained_and_the_exit_code_is_1(capsys):
    assert main(["check", f"{JUDGES}:Echo", "--environment.num_workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  the world depends on the problem or the seed" in said
    assert f"{JUDGES}:Echo keeps 6 of 8 promises of an environment" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["builtins:dict"], "looks like no kind of part; say which it is: --kind objective|optimizer|engine"),
        (["nothing"], "nothing shipped or installed is named 'nothing'; name your own part as my_module:Name"),
        ([f"{OWN}:Pull", "--optimizer.lr", "1"], "is an objective, which takes --objective.key settings"),
        ([f"{OWN}:Pull", "--kind", "tracker"], "is no tracker: it lacks log, rewind, close"),
        ([f"{OWN}:Pul"], "did you mean 'Pull'"),
        (["gone:Pull"], "cannot import 'gone'"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_sentence(capsys, argv, message):
    assert main(["check", *argv]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
