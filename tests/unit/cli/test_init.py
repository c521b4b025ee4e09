"""``heliostat init``: rows of any kind become a recipe that loads and trains, and every guess has its reason."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from heliostat.cli import main, parse
from heliostat.config import build_recipe, load_recipe
from heliostat.tasks import load_task
from heliostat.tasks.data.rows import DataRow
from heliostat.tasks.guessing.columns import find_marker, guess_columns
from heliostat.tasks.guessing.proposal import Proposal, Wishes, loaded_for, propose
from heliostat.tasks.guessing.verifiers import AnswerKind, kind_of

NUMBERS = [{"question": f"after {n} comes", "result": n + 1, "id": n} for n in range(60)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_becomes_a_recipe_that_loads_and_a_command_that_parses(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*NUMBERS, NUMBERS[0], {"question": "after x comes", "result": None, "id": 0}]
    write(here / "my problems.jsonl", rows)
    assert main(["init", "my problems.jsonl"]) == 0
    printed = capsys.readouterr().out
    for said in (
        "62 rows",
        "'question' (by its name)",
        "verifier  numeric: pays 60 of 60 right answers, 0 of 180 wrong ones",
        "54 problems to train on, 6 held out",
        "no trick worked",
        "1 row left out: the same as another row",
        "1 row left out: no prompt, answer or solution",
        "only 6 held out",
    ):
        assert said in printed
    command = printed.splitlines()[-1].strip()
    assert command == "heliostat train mine.toml --run runs/mine"
    args = parse(shlex.split(command)[1:])
    recipe = load_recipe(args.recipe, args.overrides)
    task = load_task(recipe.task[0], recipe.run.seed)
    assert (len(task.train), len(task.heldout)) == (54, 6)
    assert [weighted.name for weighted in task.verifiers] == ["numeric"]
    assert main(["init", "my problems.jsonl", "-o", "again.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["next"] == ["heliostat train again.toml --run runs/again"]
    assert (found["verifier"], found["audit"]["verdict"], found["stop"]) == ({"name": "numeric"}, "no trick worked", "")
    assert (here / "again.toml").read_text() == (here / "mine.toml").read_text()


@pytest.mark.parametrize("settings", [{}, {"label": "other"}, {"num_train": 20}], ids=str)
def test_the_audited_task_is_that_of_the_recipe_and_reads_equal_rows_once(
    settings: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = propose(str(write(here / "problems.jsonl", NUMBERS)), Wishes())
    keys = {"name": "file", "path": "problems.jsonl", "verifiers": [proposal.verifier], **proposal.settings, **settings}
    section = build_recipe({"task": [keys]}).task[0]
    expected, reads = load_task(section, 0), []
    monkeypatch.setattr("heliostat.tasks.guessing.proposal.load_task", lambda *args: reads.append(1) or expected)
    assert loaded_for(proposal, section) == expected
    assert len(reads) == bool(settings)


def test_a_recipe_is_written_over_only_by_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "problems.jsonl", NUMBERS)
    (here / "mine.toml").write_text("mine")
    (here / "runs" / "mine").mkdir(parents=True)
    assert main(["init", "problems.jsonl"]) == 2
    assert "mine.toml is already there" in capsys.readouterr().err
    assert (here / "mine.toml").read_text() == "mine"
    assert main(["init", "problems.jsonl", "--force", "--verifier", "exact", "--task.num_heldout", "9"]) == 0
    assert "heliostat train mine.toml --run runs/mine-2" in capsys.readouterr().out
    section = load_recipe("mine.toml").task[0]
    assert (section.num_train, section.num_heldout, section.settings["verifiers"]) == (51, 9, [{"name": "exact"}])


def test_prompts_that_no_run_takes_are_counted_and_no_command_is_given(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {3: 400, 7: 6000}  # the tiny model's context grows with the first, and not with the second
    rows = [{"prompt": "word " * words.get(n, 1) + str(n), "answer": n} for n in range(40)]
    assert main(["init", str(write(here / "long.jsonl", rows))]) == 1
    printed = capsys.readouterr().out
    assert "not ready to train: 1 of 40 prompts are too long for the model (first: long.jsonl, line 8)" in printed
    assert "heliostat train" not in printed
    assert main(["init", str(write(here / "long.jsonl", rows[:7])), "--force"]) == 0
    assert load_recipe("mine.toml").model.settings == {"context_length": 1280}


def test_free_text_asks_for_a_function_and_gives_one_to_begin_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"A long answer about the number {n}, which goes on for some more words." for n in range(8)]
    write(here / "essays.jsonl", [{"prompt": f"write about {n}", "response": text} for n, text in enumerate(texts)])
    assert main(["init", "essays.jsonl"]) == 1
    printed = capsys.readouterr().out
    assert "no built-in verifier fits these answers" in printed
    (here / "my_reward.py").write_text("def score" + printed.partition("def score")[2].partition("then:")[0])
    recipe = load_recipe("mine.toml")
    (weighted,) = load_task(recipe.task[0], 0).verifiers
    score = weighted.verifier.resolved()
    rewards = score(prompts=["", ""], completions=texts[:2], response=[texts[0], texts[0]])
    assert rewards[0] == 1 > rewards[1] > 0.5


WRONG = {
    "no such file": (None, ["problem.jsonl"], "there is no file 'problem.jsonl' (did you mean 'problems.jsonl'?)"),
    "plain text": (None, ["notes.txt"], "notes.txt is plain text"),
    "one row": (NUMBERS[:1], [], "holds one row"),
    "no answers": (
        [{"prompt": "a"}, {"prompt": "b"}],
        [],
        "no column of right answers beside 'prompt'",
    ),
    "no such column": (NUMBERS, ["--prompt-column", "quest"], "no column 'quest' (did you mean 'question'?)"),
    "unclear answers": (
        [{"prompt": str(n), "left": n, "right": -n} for n in range(4)],
        [],
        "cannot tell which column of problems.jsonl holds the right answers: left, right; name it with --answer-column",
    ),
    "no recipe's name": (NUMBERS, ["-o", "mine.txt"], "the name of a recipe ends in .toml"),
    "unknown verifier": (NUMBERS, ["--verifier", "nummeric"], "unknown verifier 'nummeric' (did you mean 'numeric'?)"),
    "unknown setting": (NUMBERS, ["--task.spilt", "test"], "unknown key task.spilt (did you mean 'task.split'?)"),
    "no model": (NUMBERS, ["--model", "./nothing"], "model.path './nothing': no such folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals_are_one_sentence_and_write_nothing(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, words, says = WRONG[case]
    write(here / "problems.jsonl", rows or NUMBERS)
    (here / "notes.txt").write_text("2 + 3 is 5\n")
    assert main(["init", *([] if rows is None else ["problems.jsonl"]), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not list(here.glob("*.toml"))


PROPOSALS = {
    "worked solutions": (
        [{"question": f"{n} + {n}?", "answer": f"Double {n}.\n#### {2 * n}"} for n in range(12)],
        {"answer_after": "#### ", "solution_column": "answer"},
        {"name": "numeric"},
    ),
    "labels": (
        [{"text": f"film {n}", "label": ("good", "bad")[n % 2]} for n in range(12)],
        {"answer_column": "label"},
        {"name": "exact", "ignore_case": True},
    ),
    "letters in both cases": (
        [{"prompt": f"letter {n}", "answer": "aAbB"[n % 4]} for n in range(12)],
        {},
        {"name": "exact"},
    ),
    "formulas": (
        [{"problem": f"{n} over 7", "answer": rf"\frac{{{n}}}{{7}}"} for n in range(1, 7)],
        {"prompt_column": "problem"},
        {"name": "math"},
    ),
    "chats": (
        [chat(f"{n} + 1?", "Shall I add?", "yes", str(n + 1)) for n in range(12)],
        {"prompt_column": "messages", "solution_column": "messages", "answer_turn": "last"},
        {"name": "numeric"},
    ),
}


@pytest.mark.parametrize("case", PROPOSALS)
def test_the_verifier_is_the_one_that_pays_right_answers_and_no_others(case: str, tmp_path: Path) -> None:
    rows, settings, verifier = PROPOSALS[case]
    found = propose(str(write(tmp_path / "rows.jsonl", rows)), Wishes())
    assert found.settings.items() >= settings.items()
    assert found.verifier == verifier
    assert found.chosen is not None
    assert (found.chosen.num_right_paid, found.chosen.num_wrong_paid) == (len(rows), 0)


def test_formulas_without_their_verifier_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("proposal", "verifiers"):
        monkeypatch.setattr(f"heliostat.tasks.guessing.{module}.has_math", lambda: False)
    rows, _, _ = PROPOSALS["formulas"]
    found: Proposal = propose(str(write(tmp_path / "rows.jsonl", rows)), Wishes())
    assert found.verifier == {"name": "numeric"}
    assert "pip install 'heliostat[tasks]'" in found.missing


COLUMNS = {
    "names": ({"id": 1, "answer": "5", "question": "2 + 3"}, ("question", "answer")),
    "nested": (
        {"prompt": "2 + 3", "reward_model": {"style": "rule", "ground_truth": "5"}},
        ("prompt", "reward_model.ground_truth"),
    ),
    "instructions": ({"instruction": "add", "input": "2 3", "output": "5"}, ("instruction", "output")),
    "content": ({"frage": "was ist zwei und drei", "antwort": "5"}, ("frage", "antwort")),
    "whole chats": (chat("2 + 3", "5"), ("messages", "messages")),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_are_known_by_name_and_else_by_content(case: str) -> None:
    columns, names = COLUMNS[case]
    found = guess_columns([DataRow("rows.jsonl, line 1", columns)])
    assert (found.prompt, found.answer) == names


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["1", "-2.5", "1,000"], AnswerKind.NUMBERS),
        (["1", "2", "3", "none"], AnswerKind.NUMBERS),
        ([r"\frac12", "3"], AnswerKind.MATHEMATICS),
        (["x^2 + 1", "2x"], AnswerKind.MATHEMATICS),
        ([r"Thus it is $\boxed{3}$."], AnswerKind.MATHEMATICS),
        (["yes", "no", "no"], AnswerKind.LABELS),
        (["non-toxic", "toxic"], AnswerKind.LABELS),
        (["2024-01-05", "2023-11-30"], AnswerKind.LABELS),
        (["I would say that it rains.", "That is a matter of your taste."], AnswerKind.FREE_TEXT),
    ],
)
def test_kinds_of_answers(answers: list[str], kind: AnswerKind) -> None:
    assert kind_of(answers) is kind


def test_a_marker_stands_in_every_answer_after_some_working() -> None:
    assert find_marker(["2 + 3 = 5\n#### 5", "#### 7"]) == "#### "
    assert find_marker(["So I say: The answer is 5.", "1 and 1. The answer is 2."]) == "The answer is "
    assert find_marker(["2 + 3 = 5\n#### 5", "7"]) == ""
    assert find_marker(["#### 5", "#### 7"]) == ""
