"""The promise: every result is a short line in an interpreter and a plain, escaped table in a notebook."""

import dataclasses
import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import heliostat
from heliostat.cards import Card, brief
from heliostat.monitors import Finding
from heliostat.report.diagnosis import Diagnosis
from heliostat.tasks import AuditReport
from heliostat.tasks.reward_audit.audit import AuditFinding, FindingKind, ProbeResult
from heliostat.theory import pmd_mean
from heliostat.traces import BankSummary
from heliostat.train import RunResult
from heliostat.types import Completion, Group, Problem, Prompt, StopReason, Verdict
from tests.support.public_names import public

HOSTILE = "<script src='https://example.org/x.js'>alert(1)</script> & \x1b[31m \u202e" + "long " * 400
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "smollm2-arithmetic"
GIVEN = {"Cut", "Head", "Job", "Objective", "Rule", "Schedule", "TurnFormat"}
"""Small objects that a program builds from its own settings, like ``heliostat.Step``: their ``repr`` shows how."""


def results() -> dict[str, type]:
    """Find the result dataclasses that annotations of public functions name, and the types of groups and batches."""
    named = set()
    for _, function in public():
        named |= set(re.findall(r"\w+", str(inspect.signature(function).return_annotation)))
    found = sorted((cls for cls in _dataclasses() if cls is not heliostat.Step), key=lambda cls: cls.__module__)
    return {f"{cls.__name__} of {cls.__module__}": cls for cls in found if cls.__name__ in named - GIVEN}


def _dataclasses() -> Iterator[type]:
    for name, module in list(sys.modules.items()):
        if name.startswith("heliostat."):
            for value in vars(module).values():
                if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__ == name:
                    yield value


RESULTS = results()


def filled(cls: type, value: object) -> object:
    """Build a result whose fields all hold ``value``."""
    made = cls.__new__(cls)
    for one in dataclasses.fields(cls):
        object.__setattr__(made, one.name, value)
    return made


def read(card: str) -> list[str]:
    """Parse a card, and return the texts of its cells."""
    tree = ElementTree.fromstring(f"<div>{card}</div>")
    assert {element.tag for element in tree.iter()} <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert [element.attrib for element in tree.iter() if element.attrib] == []  # no style, no colour, no address
    return [element.text or "" for element in tree.iter() if element.tag in ("td", "th", "p")]


def short(text: str) -> bool:
    return len(text) <= 300 and "\n" not in text and text.isprintable()


def test_the_results_are_found():
    assert len(RESULTS) > 35
    names = {cls.__name__ for cls in RESULTS.values()}
    assert {"RunResult", "Diagnosis", "BankSummary", "MirrorStep", "Group", "InverseDecomposition", "Step"} <= names


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_has_a_card(name):
    cls = RESULTS[name]
    assert issubclass(cls, Card)
    assert cls.__repr__ is Card.__repr__
    if cls.card_line is not Card.card_line or cls.card_rows is not Card.card_rows:
        return
    for value in (
        *(torch.zeros(100, 200), torch.tensor(0.5), np.zeros((3, 1)), HOSTILE, [HOSTILE] * 1000, 0.25),
        *({HOSTILE: HOSTILE}, (torch.zeros(9),) * 3, Path(HOSTILE[:90])),
    ):
        result = filled(cls, value)
        assert short(repr(result))
        assert repr(result).startswith(f"{cls.__name__}(")
        assert read(result._repr_html_())[0] == cls.__name__


def group(text: str, num: int) -> Group:
    problem = Problem("1", "sums", text)
    completion = Completion((1, 2), np.zeros(2), np.zeros(2), StopReason.EOS, text)
    return Group(Prompt(problem, tuple(range(5000))), (completion,) * num, (Verdict(0.5, False),) * num)


def with_sentences() -> list[Card]:
    finding = filled(Finding, HOSTILE)
    for name in ("step", "onset", "value", "statistic", "threshold", "normal"):
        object.__setattr__(finding, name, 3)
    kind = FindingKind.CONTAINMENT
    return [
        group(HOSTILE, 100),
        Diagnosis(HOSTILE, (finding,), ({"text": HOSTILE},), (HOSTILE,), None, (), HOSTILE),
        BankSummary(10**9, 10**6, 10**5, ((HOSTILE, 1, 2, 3),), ((HOSTILE, 1, 2, HOSTILE, True),), (), 5, 6, 7, 1e18),
        AuditReport(HOSTILE, 20, (ProbeResult(HOSTILE, 20, 1.0, 1.0, 0.0, 0),), (AuditFinding(kind, HOSTILE),)),
        RunResult(Path("runs/x"), "failed", HOSTILE, None, None, findings=(HOSTILE,)),
    ]


def test_a_sentence_of_its_own_is_as_short_and_as_safe():
    diagnosed = heliostat.diagnose(EXAMPLE)
    for result in [*with_sentences(), diagnosed]:
        assert short(repr(result)), repr(result)
        cells = read(result._repr_html_())
        assert "\x1b" not in "".join(cells)
        assert "\u202e" not in "".join(cells)
    assert diagnosed.headline in repr(diagnosed)


def test_a_card_says_what_is_in_the_result():
    step = pmd_mean([0.5, 0.5], [1.0, 0.0], 0.3)
    assert "probs=float64[2], " in repr(step)
    assert f"lam={float(step.lam):.4g}" in repr(step)
    cells = read(group("1 + 1 =", 9)._repr_html_())
    assert cells == ["Group", "", "prompt", "1 + 1 =", *["reward 0.5", "1 + 1 ="] * 8, "", "1 more"]


def test_a_recipe_shows_what_differs_from_the_defaults():
    recipe = heliostat.load_recipe("demo", {"objective.tau": 0.25, "run.name": "<b>"})
    assert repr(recipe) == (
        "Recipe(model tiny, task reasoning-gym/chain_sum, objective pmd-mean, optimizer adamw, 60 steps)"
    )
    cells = read(recipe._repr_html_())
    rows = dict(zip(cells[::2], cells[1::2], strict=True))
    assert "tau = 0.25" in rows["objective"]
    assert rows["run"] == "name = '<b>'"
    assert "guard" not in rows


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.1234567, "0.1235"),
        (True, "True"),
        ("a\x1bb", r"'a\x1bb'"),
        ([1, 2, 3], "(1, 2, 3)"),
        (list(range(9)), "9 × int"),
        ({"a": 1}, "{'a': 1}"),
        (torch.zeros(3, 2), "float32[3, 2]"),
        (np.int64(7), "7"),
        (StopReason.EOS, "eos"),
        (torch.nn.Linear(2, 2), "Linear"),
    ],
)
def test_a_value_in_a_few_words(value, words):
    assert brief(value) == words
