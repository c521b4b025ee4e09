"""Stable-Baselines3's own tests with SMAC in A2C's place, and with A2C itself for comparison.

    git clone --depth 1 https://github.com/DLR-RM/stable-baselines3 SB3
    python benchmarks/control/sb3_tests.py SB3/tests --out benchmarks/control/results/sb3-tests.json

SMAC runs a copy of the files in which the word ``A2C`` reads ``SMAC`` and the string ``"a2c"`` reads ``"smac"``. A test
belongs to the list if one of its parameters is the algorithm, or, where it has none as a parameter, if its code or a
fixture's names it. A test that A2C itself fails on this machine (a missing package, say) is listed apart.

Left out: the tests of other algorithms and of parts without an algorithm.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch

PEER, OURS = CONTENDERS = ("A2C", "SMAC")
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "numpy", "pytest")


def contender_class(name: str) -> type:
    import stable_baselines3

    from heliostat.control import SMAC

    return {"A2C": stable_baselines3.A2C, "SMAC": SMAC}[name]


class Substitution:
    """A pytest plugin: keeps the tests that use the contender, and records what became of each."""

    def __init__(self, contender: type) -> None:
        self.contender = contender
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = [item for item in items if isinstance(item, pytest.Function) and uses(item, self.contender)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("/")[2].replace(OURS, PEER).replace("[smac", "[a2c")
        if report.failed:
            self.outcomes[name] = reason_of(report)
        elif report.skipped and report.when != "teardown":
            self.outcomes[name] = "skipped"
        elif report.when == "call":
            self.outcomes.setdefault(name, "passed")


def reason_of(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return " ".join(message.split())[:200]


def uses(item: pytest.Function, contender: type) -> bool:
    """Whether a collected test is one of the contender's."""
    from stable_baselines3.common.base_class import BaseAlgorithm

    parameters = list(flattened((getattr(item, "callspec", None) and item.callspec.params.values()) or ()))
    if any(isinstance(one, type) and issubclass(one, BaseAlgorithm) for one in parameters):
        return contender in parameters
    strings = [one for one in parameters if isinstance(one, str)]
    if contender.__name__.lower() in strings:
        return True
    fixtures = [definition.func for each in item._fixtureinfo.name2fixturedefs.values() for definition in each]
    return any(
        contender.__name__ in names_in(function.__code__)
        for function in [item.function, *fixtures]
        if is_plain(function)
    )


def is_plain(function: Any) -> bool:
    return hasattr(function, "__code__")


def flattened(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from flattened(value) if isinstance(value, tuple | list) else [value]


def names_in(code: CodeType) -> set[str]:
    inner = [names_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def renamed(tests: Path, folder: Path) -> Path:
    """A copy of the tests that name SMAC where they named A2C."""
    copy = folder / "sb3" / tests.name
    shutil.copytree(tests, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in copy.glob("*.py"):
        text = re.sub(rf"\b{PEER}\b", OURS, file.read_text(encoding="utf-8"))
        text = re.sub(rf"(from stable_baselines3 import .*)\b{OURS}\b", rf"\1{PEER} as {OURS}", text)
        file.write_text(text.replace(f'"{PEER.lower()}"', f'"{OURS.lower()}"'), encoding="utf-8")
    return copy


def run_here(tests: Path, contender: str, words: str) -> dict[str, str]:
    """Outcomes by test, in this process; the working folder is the caller's, and some tests write into it."""
    import stable_baselines3

    torch.set_num_threads(1)
    chosen = contender_class(contender)
    with tempfile.TemporaryDirectory() as folder:
        if contender == OURS:
            setattr(stable_baselines3, PEER, chosen)
            tests = renamed(tests, Path(folder))
        paths = [str(tests.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for environments in processes of their own
        plugin = Substitution(chosen)
        settings = ["-q", "--tb=line", "-p", "no:cacheprovider", "--timeout=300", f"--rootdir={tests.parent}"]
        settings += ["-c", os.devnull, "--import-mode=prepend", "--continue-on-collection-errors"]
        pytest.main([*settings, str(tests), *shlex.split(words)], plugins=[plugin])
    return plugin.outcomes


def run_apart(tests: Path, contender: str, words: str) -> dict[str, str]:
    """As ``run_here``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        command = [sys.executable, str(Path(__file__).resolve()), str(tests.resolve())]
        command += ["--only", contender, "--out", str(out), f"--pytest={words}"]
        subprocess.run(command, check=True, cwd=folder)
        found: dict[str, str] = json.loads(out.read_text(encoding="utf-8"))
    return found


def table(outcomes: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Numbers of SMAC's tests, those it fails and the peer passes, and those the peer fails."""
    peer, ours = outcomes[PEER], outcomes[OURS]
    ran = {name: outcome for name, outcome in ours.items() if outcome != "skipped"}
    usable = {name: outcome for name, outcome in ran.items() if peer.get(name) == "passed"}
    return {
        "tests": len(ran),
        "passed": sum(outcome == "passed" for outcome in ran.values()),
        "skipped": sum(outcome == "skipped" for outcome in ours.values()),
        "failed": {name: outcome for name, outcome in usable.items() if outcome != "passed"},
        "failed by A2C too": {name: peer.get(name, "not run") for name in ran if name not in usable},
        "versions": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="the folder tests/ of a checkout of Stable-Baselines3")
    parser.add_argument("--only", choices=CONTENDERS, help="one algorithm, its outcomes as they are")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pytest", default="", help="further words for pytest, like '-k save_load'")
    arguments = parser.parse_args()
    if arguments.only:
        found: dict[str, Any] = run_here(arguments.tests, arguments.only, arguments.pytest)
    else:
        found = table({name: run_apart(arguments.tests, name, arguments.pytest) for name in CONTENDERS})
        print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
