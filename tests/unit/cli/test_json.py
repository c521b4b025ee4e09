"""``--json``: standard output is one JSON object, whatever else is printed meanwhile."""

import json
import os
from types import SimpleNamespace

import pytest

from heliostat.cli import main
from heliostat.cli.arguments import COMMANDS
from heliostat.cli.parser import Parser
from heliostat.traces import Bank, BankSummary, Trace, TraceSource

RECIPE = """
[model]
path = "tiny"
[[task]]
name = "file"
path = "problems.jsonl"
answer_column = "answer"
num_train = 4
num_heldout = 2
verifiers = [{ name = "exact" }]
"""
CASES = {
    "init problems.jsonl -o new.toml --force": "trials",
    "eval tiny --recipe mine.toml": "models",
    "eval tiny --json --recipe mine.toml": "models",
    "sample tiny --prompt 2+2=": "prompts",
    "sample tiny --recipe mine.toml --environment.name mine:World": "prompts",
    "sample tiny --recipe mine.toml --bank filled.bank": "num_attempts",
    "runs": "runs",
    "traces import old.bank rows.jsonl": "appended",
    "traces export old.bank exported": "files",
    "traces show old.bank": "traces",
    "traces stats old.bank": "num_traces",
    "traces verify old.bank": "rewards",
    "diagnose rows.jsonl": "findings",
    "doctor": "healthy",
    "tasks list": "tasks",
    "tasks audit mine.toml": "audits",
    "scale qwen2.5-0.5b": "gpus",
    "check pmd-mean": "checks",
    "recipes": "recipes",
    "recipes demo": "settings",
    "metrics": "metrics",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with problems, a recipe, and a bank of one trace, whose temperature is not known."""
    here = tmp_path_factory.mktemp("json")
    rows = [{"prompt": f"{n} + {n} =", "answer": str(2 * n)} for n in range(8)]
    (here / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "rows.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4", "reward": 1.0}\n')
    (here / "mine.toml").write_text(RECIPE)
    source = TraceSource(tokenizer="some", temperature=float("nan"))
    with Bank.open(here / "old.bank") as bank:
        bank.append([Trace("one", "file", (1, 2), (3,), 1.0, True, source, text="4")])
    return here


@pytest.fixture
def noisy_api(monkeypatch):
    """Functions in place of those that load a model; each of them prints."""

    def noisy(result):
        def function(*args, **options):
            print("printed")
            os.write(1, b"written")
            return result

        return function

    results = {
        "evaluate": SimpleNamespace(to_json=lambda: '{"models": []}'),
        "sample": [],
        "sample_conversations": [],
        "collect": BankSummary(1, 1, 1, (), (), (), 1, 0, 1, float("inf")),
    }
    monkeypatch.setattr("heliostat.cli.machine.torch_and_gpus", list)
    for name, result in results.items():
        monkeypatch.setattr(f"heliostat.api.{name}", noisy(result))


@pytest.mark.parametrize("line", CASES)
def test_standard_output_is_one_object(line, folder, noisy_api, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    words = line.split()
    assert main(words if "--json" in words else [*words, "--json"]) in (0, 1)
    out, err = capfd.readouterr()
    assert CASES[line] in json.loads(out)
    assert ("printed" in err) == ("written" in err) == (words[0] in ("eval", "sample"))


def test_every_command_with_json_is_tried_here():
    def lines(commands, above=()):
        for name, command in commands.items():
            yield (*above, name), command
            yield from lines(dict(command.subcommands), (*above, name))

    have = set()
    for path, command in lines(COMMANDS):
        parser = Parser(" ".join(path))
        command.add_arguments(parser)
        if "--json" in parser.format_help():
            have.add(" ".join(path))
    tried = {name for name in have if any(line.startswith(name) for line in CASES)}
    assert tried == have
    assert len(have) > 10


def test_a_refusal_leaves_standard_output_empty(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    assert main(["tasks", "audit", "absent.toml", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("heliostat: ")
