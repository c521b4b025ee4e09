"""Whole questions on one side of a split, nothing merged that differs, and every row left out counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from heliostat.config import TaskSection
from heliostat.tasks import Task, VerifierPool, load_task


def load(tmp_path: Path, rows: list[dict[str, Any]], num_train: int, num_heldout: int, **keys: Any) -> Task:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    defaults: dict[str, Any] = {"answer_column": "answer", "verifiers": [{"name": "exact"}]}
    return load_task(
        TaskSection(name="file", path=str(path), num_train=num_train, num_heldout=num_heldout, **defaults | keys), 0
    )


def chat(question: str, system: str = "") -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


FORMS = {
    "two system prompts": lambda q: [chat(q, "Be brief."), chat(q, "Think aloud.")],
    "text and chat": lambda q: [q, chat(q)],
    "text and chat with system": lambda q: [f"{q}\r\n", chat(q, "Be brief.")],
    "developer": lambda q: [chat(q), [{"role": "developer", "content": "Be brief."}, *chat(q)]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_question_is_on_one_side_whatever_form_it_comes_in(form: str, tmp_path: Path) -> None:
    questions = [f"What is {i} + 1?" for i in range(12)]
    rows = [{"prompt": prompt, "answer": "1"} for question in questions for prompt in FORMS[form](question)]
    task = load(tmp_path, rows, 16, 8)
    sides = [{problem.question.strip() for problem in problems} for problems in (task.train, task.heldout)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(questions)
    assert task.notes == ()


def test_a_template_with_further_columns_does_not_tell_questions_apart(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "answer": "1", "hint": hint} for i in range(12) for hint in "ab"]
    task = load(tmp_path, rows, 16, 8, template="{question} Hint: {hint}")
    sides = [{problem.question.split()[0] for problem in problems} for problems in (task.train, task.heldout)]
    assert not sides[0] & sides[1]


def test_a_group_column_says_what_belongs_together(tmp_path: Path) -> None:
    rows = [{"prompt": "What is said?", "text": f"{i // 2} {i}", "page": i // 2, "answer": str(i)} for i in range(12)]
    keys = {"template": "{text} {question}", "group_column": "page"}
    task = load(tmp_path, rows, 8, 4, **keys)
    pages = [{problem.columns["page"] for problem in problems} for problems in (task.train, task.heldout)]
    assert not pages[0] & pages[1]
    with pytest.raises(ValueError, match=r"num_train \+ num_heldout = 12; .* \(8 more ask held-out questions\)"):
        load(tmp_path, rows, 8, 4, template="{text} {question}")


def test_a_question_that_is_cut_by_the_split_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": chat(f"{i}?", system), "answer": "1"} for i in range(6) for system in "abc"]
    task = load(tmp_path, rows, 12, 4)
    assert task.notes == ("rows.jsonl: 2 rows left out: it asks a held-out question",)


def test_rows_that_differ_in_layout_are_different_and_equal_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "for i in x:\n  a()\n  b()", "answer": "abab"},
        {"prompt": "for i in x:\n  a()\nb()", "answer": "aab"},
        {"prompt": "1 0\n0 1", "answer": "2x2"},
        {"prompt": "1 0 0 1", "answer": "1x4"},
    ]
    task = load(tmp_path, rows + rows[:3], 3, 1)
    problems = task.train + task.heldout
    assert {problem.prompt: problem.answer for problem in problems} == {row["prompt"]: row["answer"] for row in rows}
    assert len({problem.problem_id for problem in problems}) == 4
    assert task.notes == ("rows.jsonl: 3 rows left out: the same as another row",)


def test_every_answer_of_a_prompt_is_right_and_every_solution_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "answer": answer, "way": way} for i in range(4) for answer in "AB" for way in "xy"]
    task = load(tmp_path, rows, 12, 4, solution_column="way")
    assert len({problem.problem_id for problem in task.train + task.heldout}) == 16
    assert {(problem.answer, problem.solution) for problem in task.train} == {(a, w) for a in "AB" for w in "xy"}
    assert task.notes == ("rows.jsonl: 16 rows share their prompt and not their answer; each answer is right",)
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(task.train[0], ["A", "B", "C", ""]).result(timeout=120)
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0]


def test_the_order_of_rows_does_not_matter_where_prompts_repeat(tmp_path: Path) -> None:
    rows = [{"prompt": chat(f"{i}?", system), "answer": str(i)} for i in range(8) for system in "ab"]
    assert load(tmp_path, rows, 12, 4) == load(tmp_path, rows[::-1], 12, 4)


def test_missing_values_stop_with_their_place_or_are_dropped_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{i}?", "answer": i} for i in range(6)]
    rows += [{"prompt": "a?", "answer": None}, {"prompt": "b?", "answer": float("nan")}, {"prompt": " ", "answer": 1}]
    with pytest.raises(ValueError, match=r"line 7: 'answer' .*; task.on_missing = 'drop' leaves such rows out"):
        load(tmp_path, rows, 4, 2)
    task = load(tmp_path, rows, 4, 2, on_missing="drop")
    assert task.notes == ("rows.jsonl: 3 rows left out: no prompt, answer or solution",)


def test_whole_numbers_that_a_gap_made_floats_are_whole_again_and_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "answer": float(i)} for i in range(6)]
    task = load(tmp_path, rows, 4, 2)
    assert {problem.answer for problem in task.train + task.heldout} == set("012345")
    assert task.notes == ("rows.jsonl: answers are whole numbers stored as 1.0, 2.0, ...; read as 1, 2, ...",)
    rows[0]["answer"] = 0.5
    assert {problem.answer for problem in load(tmp_path, rows, 4, 2).train} <= {
        "0.5",
        "1.0",
        "2.0",
        "3.0",
        "4.0",
        "5.0",
    }


def test_columns_inside_columns_are_named_by_paths(tmp_path: Path) -> None:
    rows = [
        {
            "ask": {"prompt": chat(f"{i}?")},
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"passage": f"p{i}"},
        }
        for i in range(6)
    ]
    keys = {"prompt_column": "ask.prompt", "template": "{extra_info.passage}: {question}"}
    task = load(tmp_path, rows, 4, 2, answer_column="reward_model.ground_truth", **keys)
    for problem in task.train + task.heldout:
        assert problem.question == f"p{problem.answer}: {problem.answer}?"
    with pytest.raises(
        ValueError, match=r"name one of the columns in it: reward_model.style, reward_model.ground_truth"
    ):
        load(tmp_path, rows, 4, 2, answer_column="reward_model", **keys)
    with pytest.raises(
        ValueError, match=r"no column 'reward_model.truth' \(did you mean 'reward_model.ground_truth'\?\)"
    ):
        load(tmp_path, rows, 4, 2, answer_column="reward_model.truth", **keys)
