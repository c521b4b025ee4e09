"""Rows as programs have them: every kind of table gives the same task, whole and without a file."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from heliostat import api
from heliostat.config import Recipe, build_recipe
from heliostat.tasks import Task, load_task

ROWS = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": i, "tags": ["a", None]} for i in range(20)]
REWARDS = ["exact"]


def task_of(data: object, heldout: object = None, overrides: Any = (), recipe: Recipe | None = None) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "run_eval", lambda models, checked, **_: load_task(checked.task[0], checked.run.seed))
        return cast("Task", api.evaluate("tiny", recipe, overrides, data=data, heldout=heldout, rewards=REWARDS))


def columns_of(task: Task) -> list[Any]:
    return sorted((problem.answer, problem.question, str(problem.columns)) for problem in task.train + task.heldout)


def hugging_face(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


KINDS = {
    "generator": lambda rows: (row for row in rows),
    "tuple": tuple,
    "numpy scalars": lambda rows: [
        {**row, "answer": pytest.importorskip("numpy").int64(row["answer"])} for row in rows
    ],
    "torch scalars": lambda rows: [
        {**row, "answer": pytest.importorskip("torch").tensor(row["answer"])} for row in rows
    ],
    "pandas": lambda rows: pytest.importorskip("pandas").DataFrame(rows),
    "arrow": lambda rows: pytest.importorskip("pyarrow").Table.from_pylist(rows),
    "polars": lambda rows: pytest.importorskip("polars").DataFrame(rows),
    "data set": hugging_face,
    "torch data set": lambda rows: hugging_face(rows).with_format("torch"),
    "numpy data set": lambda rows: hugging_face(rows).with_format("numpy"),
    "pandas data set": lambda rows: hugging_face(rows).with_format("pandas"),
    "streamed data set": lambda rows: hugging_face(rows).to_iterable_dataset(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_task(kind: str) -> None:
    task, wanted = task_of(KINDS[kind](ROWS)), task_of(ROWS)
    assert columns_of(task) == columns_of(wanted)
    assert (len(task.train), len(task.heldout)) == (18, 2)
    assert task.heldout == wanted.heldout
    assert task.train[0].columns["tags"] == ["a", None]


def test_missing_numbers_of_a_frame_are_none_and_whole_numbers_stay_whole() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": [f"{i}?" for i in range(4)], "answer": [0.0, 1.0, 2.0, float("nan")]})
    overrides = {"task.answer_column": "answer", "task.on_missing": "drop"}
    task = task_of(frame, overrides=overrides)
    assert sorted(problem.answer for problem in task.train + task.heldout) == ["0", "1", "2"]
    assert "data: 1 row left out: no prompt, answer or solution" in task.notes


def test_columns_of_other_names_are_settings_and_all_rows_are_used() -> None:
    rows = [{"question": f"{i}?", "meta": {"gold": str(i)}} for i in range(20)]
    overrides = {"task.prompt_column": "question", "task.answer_column": "meta.gold"}
    task = task_of(rows, overrides=overrides)
    assert {problem.answer for problem in task.train + task.heldout} == {str(i) for i in range(20)}
    words = ["--task.prompt_column", "question", "--task.answer_column", "meta.gold", "--task.num_heldout", "5"]
    task = task_of(rows, overrides=words)
    assert (len(task.train), len(task.heldout)) == (15, 5)
    named = build_recipe({"task.name": "file", "task.path": "x.jsonl", "task.split": "dev", **overrides})
    assert len(task_of(rows, recipe=named).train) == 18


def test_repeated_questions_are_counted_as_rows_and_stay_on_one_side() -> None:
    rows = [{"prompt": f"{i}?", "answer": str(k), "k": k} for i in range(10) for k in range(3)]
    task = task_of(rows + rows[:2])
    assert len(task.train) + len(task.heldout) == 30
    assert not {problem.question for problem in task.train} & {problem.question for problem in task.heldout}
    assert "data: 2 rows left out: the same as another row" in task.notes


def test_held_out_rows_may_be_given_or_come_as_a_split() -> None:
    datasets = pytest.importorskip("datasets")
    train, test = ROWS[:15], [*ROWS[15:], {**ROWS[0], "prompt": "0?"}]
    asked = {f"{i}?" for i in (*range(15, 20), 0)}
    splits = datasets.DatasetDict({"train": hugging_face(ROWS[:15]), "test": hugging_face(ROWS[15:])})
    given = [task_of(train, test), task_of({"train": train, "test": test}), task_of(splits["train"], test)]
    for task in given:
        assert {problem.question for problem in task.heldout} == asked
        assert {problem.question for problem in task.train} == {f"{i}?" for i in range(1, 15)}
        assert "data: 1 row left out: it asks a held-out question" in task.notes
    assert {problem.question for problem in task_of(splits).heldout} == {f"{i}?" for i in range(15, 20)}
    with pytest.raises(ValueError, match=r"data has the splits a, b, c; say which is held out"):
        task_of({"a": train, "b": test, "c": test})


@pytest.mark.parametrize("data", [3, b"x", {"prompt": ["1?"], "answer": ["1"]}, [1, 2]])
def test_what_is_no_table_is_refused_by_its_kind(data: object) -> None:
    with pytest.raises(TypeError, match=r"data must be rows|expected a dict"):
        task_of(data)


def test_rows_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for data in (file, str(file)):
        assert task_of(data).train == task_of(ROWS).train
    with pytest.raises(FileNotFoundError, match=r"there is no data file absent\.jsonl"):
        task_of("absent.jsonl")


def test_rows_that_no_file_could_hold_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="data, row 2: 'prompt' holds half of a character"):
        task_of([{"prompt": "1?"}, {"prompt": "\ud83d"}])
