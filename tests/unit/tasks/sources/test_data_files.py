"""Users' own data: every format, TRL's column conventions, and every way in which a file can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from heliostat.config import ConfigError, TaskSection
from heliostat.tasks import Task, load_task
from tests.support.tasks import REWARDS

ROWS = [{"prompt": f"{i} + {i} =", "answer": str(2 * i), "level": i} for i in range(12)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, num_train: int = 8, num_heldout: int = 4, seed: int = 0, **keys: Any) -> Task:
    defaults: dict[str, Any] = {"answer_column": "answer", "verifiers": [{"name": "exact"}]}
    section = TaskSection(
        name="file", path=str(path), num_train=num_train, num_heldout=num_heldout, **{**defaults, **keys}
    )
    return load_task(section, seed)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write(tmp_path / "sums.jsonl", ROWS)


def test_rows_become_problems_and_their_other_columns_go_to_verifiers(jsonl: Path) -> None:
    task = load(jsonl)
    assert task.name == "sums"
    by_prompt = {problem.prompt: problem for problem in task.train + task.heldout}
    assert set(by_prompt) == {row["prompt"] for row in ROWS}
    for row in ROWS:
        problem = by_prompt[row["prompt"]]
        assert problem.answer == problem.solution == row["answer"]
        assert problem.columns == {"answer": row["answer"], "level": row["level"]}


def test_the_split_is_seeded_and_independent_of_row_order_and_of_the_size_of_train(tmp_path: Path, jsonl: Path) -> None:
    task = load(jsonl)
    turned = write(tmp_path / "turned.jsonl", ROWS[::-1])
    assert load(turned, label="sums") == task
    assert load(jsonl, num_train=3).heldout == task.heldout
    assert load(jsonl, seed=1).heldout != task.heldout
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.heldout}


def test_the_same_prompt_twice_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "twice.jsonl", [*ROWS, *ROWS, {**ROWS[0], "prompt": f"  {ROWS[0]['prompt']}\n"}])
    assert len(load(path).train) == 8
    with pytest.raises(ValueError, match=r"has 12 different problems, but num_train \+ num_heldout = 13; lower"):
        load(path, num_train=9)


@pytest.mark.slow
def test_parquet_and_saved_data_sets_give_the_same_task_as_jsonl(tmp_path: Path, jsonl: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "rows.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(str(tmp_path / "splits"))
    folder = tmp_path / "folder"
    folder.mkdir()
    data.to_parquet(str(folder / "train.parquet"))
    task = load(jsonl)
    for path in ("rows.parquet", "saved", "splits", "folder"):
        assert load(tmp_path / path, label="sums") == task, path
    assert len(load(tmp_path / "splits", split="test", num_train=1, num_heldout=1).train) == 1
    both = load(tmp_path / "splits", heldout_split="test", num_train=3, num_heldout=2)
    assert {problem.prompt for problem in both.heldout} == {row["prompt"] for row in ROWS[:2]}
    assert not {problem.prompt for problem in both.train} & {problem.prompt for problem in both.heldout}
    with pytest.raises(ConfigError, match="has no split 'dev'; it has: train, test"):
        load(tmp_path / "splits", split="dev")


def test_chat_prompts_stay_chats_and_the_template_goes_around_the_last_turn(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}],
            "answer": int(row["answer"]),
            "completion": [{"role": "assistant", "content": f"It is # {row['answer']}"}],
        }
        for row in ROWS
    ]
    path = write(tmp_path / "chat.jsonl", rows)
    keys = {"template": "Q: {question}", "answer_after": "#", "solution_column": "completion"}
    task = load(path, verifiers=[{"name": f"{REWARDS}:good"}], **keys)
    for problem in task.train:
        assert [message["role"] for message in problem.prompt] == ["system", "user"]
        assert problem.question.startswith("Q: ")
        assert problem.solution == f"It is # {problem.answer}"


def test_an_answer_column_with_reasoning_is_read_like_a_completion(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "answer": f"Twice {i}.\n#### {row['answer']}"} for i, row in enumerate(ROWS)]
    task = load(write(tmp_path / "gsm.jsonl", rows), answer_after="####", solution_column="answer")
    for problem in task.train:
        assert problem.solution.endswith(f"\n#### {problem.answer}")


def test_heldout_problems_may_come_from_elsewhere_and_are_kept_out_of_training(tmp_path: Path, jsonl: Path) -> None:
    other = write(tmp_path / "other.jsonl", ROWS[:3])
    task = load(jsonl, num_train=9, num_heldout=3, heldout_path=str(other))
    assert {problem.prompt for problem in task.heldout} == {row["prompt"] for row in ROWS[:3]}
    assert {problem.prompt for problem in task.train} == {row["prompt"] for row in ROWS[3:]}
    with pytest.raises(ValueError, match=r"other.jsonl' has 3 different problems, but num_heldout = 4"):
        load(jsonl, heldout_path=str(other))
    with pytest.raises(ValueError, match=r"sums.jsonl' has 9 different problems, but num_train = 10"):
        load(jsonl, num_train=10, num_heldout=3, heldout_path=str(other))


BAD_ROWS = [
    ('{"prompt": "x"', "line 13: not valid JSON"),
    ('["x"]', "line 13: expected a JSON object with columns, got list"),
    ('{"promt": "x", "answer": "1"}', r"line 13: no column 'prompt' \(did you mean 'promt'\?\)"),
    ('{"prompt": " ", "answer": "1"}', "line 13: 'prompt' must be a non-empty text or a list of chat messages"),
    ('{"prompt": 7, "answer": "1"}', "line 13: 'prompt' must be"),
    ('{"prompt": [], "answer": "1"}', "line 13: 'prompt' must be"),
    (
        '{"prompt": [{"role": "boss", "content": "x"}], "answer": "1"}',
        "line 13: every message in 'prompt' needs a 'role'",
    ),
    ('{"prompt": [{"role": "user"}], "answer": "1"}', "line 13: every message"),
    ('{"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}', "ends with an assistant's turn"),
    ('{"prompt": "x"}', "line 13: no column 'answer'"),
    ('{"prompt": "x", "answer": ""}', "line 13: 'answer' must be a non-empty text or a number"),
    ('{"prompt": "x", "answer": null}', "line 13: 'answer' must be"),
    ('{"prompt": "x", "answer": true}', "line 13: 'answer' must be"),
    ('{"prompt": "x", "answer": ["1"]}', "line 13: every message in 'answer'"),
]


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(jsonl: Path, line: str, message: str) -> None:
    with jsonl.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        load(jsonl)
    assert "sums.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_lines_do_not_count_but_are_counted(jsonl: Path) -> None:
    jsonl.write_text("\n\n" + jsonl.read_text() + "\n{\n")
    with pytest.raises(ValueError, match=r"sums.jsonl, line 16: not valid JSON"):
        load(jsonl)


def test_a_solution_without_the_marker_would_teach_failure(jsonl: Path) -> None:
    with pytest.raises(ValueError, match="line 1: 'answer' does not contain answer_after = '#'"):
        load(jsonl, answer_after="#", solution_column="answer")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file '.*nothing.jsonl'"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match="there is no file or folder"):
        load(tmp_path / "nothing")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.jsonl' holds no problems"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "rows.csv").write_text("prompt,answer\n")
    with pytest.raises(ValueError, match=r"rows.csv' holds no problems"):
        load(tmp_path / "rows.csv")
    (tmp_path / "rows.txt").write_text("1 + 1 = 2\n")
    with pytest.raises(ConfigError, match=r"rows.txt' is no data file; its name must end in .jsonl, "):
        load(tmp_path / "rows.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"broken.parquet is not a readable Parquet file"):
        load(tmp_path / "broken.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot load data set"):
        load(tmp_path / "folder")


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nnetwork"))
    )
    with pytest.raises(ConfigError, match="cannot load data set 'someone/sums': ConnectionError: no network"):
        load(Path("someone/sums"))


def test_file_tasks_must_say_how_answers_are_judged(jsonl: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs task.verifiers, for example \[\{name = \"numeric\"\}\]"):
        load(jsonl, verifiers=[])
    with pytest.raises(ConfigError, match=r"set task.answer_column, or use a verifier that needs no answer"):
        load(jsonl, answer_column="")
    with pytest.raises(ConfigError, match="needs 'path'; the data has: answer, level"):
        load(jsonl, verifiers=[{"name": f"{REWARDS}:log_call"}])


@pytest.mark.parametrize(("turn", "num_asked", "answer"), [("first", 1, "5"), ("last", 3, "6")])
def test_a_conversation_is_asked_up_to_the_turn_that_answers(
    tmp_path: Path, turn: str, num_asked: int, answer: str
) -> None:
    said = [("user", "2 + 3 ="), ("assistant", "5"), ("user", "and one more"), ("assistant", "6"), ("user", "thanks")]
    messages = [{"role": role, "content": content} for role, content in said]
    other = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    path = write(tmp_path / "chats.jsonl", [{"messages": messages}, {"messages": other}])
    columns = dict.fromkeys(("prompt_column", "answer_column", "solution_column"), "messages")
    task = load(path, num_train=1, num_heldout=1, answer_turn=turn, **columns)
    (problem,) = (one for one in task.train + task.heldout if one.prompt[0]["content"] == "2 + 3 =")
    assert (len(problem.prompt), problem.answer) == (num_asked, answer)
    assert [message["content"] for message in problem.turns] == [m["content"] for m in messages[num_asked:4]]
