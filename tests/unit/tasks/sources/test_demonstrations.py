"""What ``sft --data`` reads as question, solution and answer, in the forms in which people have demonstrations."""

import json
from pathlib import Path
from typing import Any

import pytest

from heliostat.config import ConfigError, TaskSection
from heliostat.tasks import Task, load_task
from heliostat.tasks.sources.demonstrations import demonstrations_of

USER, REPLY = {"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}
OWN = {"name": "file", "path": "own.jsonl", "answer_column": "answer", "verifiers": [{"name": "numeric"}]}


def task_of(tmp_path: Path, rows: list[dict[str, Any]], num_train: int = 2, **keys: Any) -> Task:
    path = tmp_path / "shown.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = TaskSection(**OWN | {"num_train": num_train, "num_heldout": 1} | keys)
    return load_task(TaskSection(**demonstrations_of(section, str(path))), 0)


def numbered(row: dict[str, Any], num: int = 3) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(row).replace("1?", f"{i}?")) for i in range(num)]


FORMS = {
    "texts": ({"prompt": "1?", "completion": "one"}, {}, 0),
    "chat and text": ({"prompt": [USER], "completion": "one"}, {}, 0),
    "chat": ({"prompt": [USER], "completion": [REPLY]}, {}, 1),
    "several turns": ({"prompt": [USER], "completion": [REPLY, {**USER, "content": "sure?"}, REPLY]}, {}, 3),
    "messages": ({"messages": [USER, REPLY]}, {}, 1),
    "trailing user": ({"messages": [USER, REPLY, {**USER, "content": "thanks"}]}, {}, 1),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "one"}]},
        {},
        1,
    ),
    "the recipe's columns": (
        {"instruction": "1?", "output": "one"},
        {"prompt_column": "instruction", "solution_column": "output"},
        0,
    ),
    "paths": ({"x": {"q": "1?", "a": "one"}}, {"prompt_column": "x.q", "solution_column": "x.a"}, 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_question_solution_and_answer(form: str, tmp_path: Path) -> None:
    row, keys, num_turns = FORMS[form]
    task = task_of(tmp_path, numbered(row), **keys)
    for problem in task.train + task.heldout:
        assert problem.question.endswith("?")
        assert (problem.solution, problem.answer) == ("one", "one")
        assert len(problem.turns) == num_turns
    assert [weighted.name for weighted in task.verifiers] == ["exact"]


def test_the_recipes_template_and_answers_count(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"so: {i}", "answer": i} for i in range(3)]
    task = task_of(tmp_path, rows, template="Compute: {question}")
    for problem in task.train:
        assert problem.prompt == f"Compute: {problem.answer}?"
        assert problem.solution == f"so: {problem.answer}"
    assert [weighted.name for weighted in task.verifiers] == ["numeric"]


def test_all_solutions_of_a_prompt_are_used(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"way {k}: {i}"} for i in range(6) for k in range(5)]
    task = task_of(tmp_path, rows, num_train=25, num_heldout=5)
    assert {problem.solution for problem in task.train + task.heldout} == {row["completion"] for row in rows}
    assert not {problem.question for problem in task.train} & {problem.question for problem in task.heldout}


BAD = {
    "text alone": ({"text": "1? one"}, "has the columns text; say which one asks and which one is to be learned"),
    "alpaca": ({"instruction": "1?", "output": "one"}, r"task.prompt_column and task.solution_column"),
    "nobody answers": ({"messages": [USER]}, "has no assistant's turn to learn from"),
    "nobody asks": ({"messages": [REPLY, USER, REPLY]}, "begins with an assistant's turn, before anything is asked"),
    "unknown speaker": ({"messages": [{"role": "boss", "content": "x"}, REPLY]}, "line 1: every message in 'messages'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_imitated_is_one_sentence(name: str, tmp_path: Path) -> None:
    row, message = BAD[name]
    with pytest.raises((ConfigError, ValueError), match=message):
        task_of(tmp_path, numbered(row))
