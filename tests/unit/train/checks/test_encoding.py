"""What could never be said, read or fitted in is refused before step 1, with its row and the way out."""

import json
from types import SimpleNamespace

import pytest

from heliostat.config import ConfigError, ModelSection, build_recipe
from heliostat.models import encode_problem, encode_solution, load_model
from heliostat.models.loading.tiny import CHAT_TEMPLATE
from heliostat.models.prompts.token_counts import prompt_sizes, solution_sizes
from heliostat.tasks import load_task
from heliostat.train.checks.encoding import check_encodable
from heliostat.types import Problem, Prompt
from tests.support.checkpoints import CONTEXT_LENGTH, chat_tokenizer, load_float32, write_checkpoint

SETTINGS = {
    "task": {"name": "file", "path": "sums.jsonl", "answer_column": "answer", "verifiers": [{"name": "numeric"}]},
    "rollout": {"max_new_tokens": 6},
}
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
) + CHAT_TEMPLATE
BROKEN = "{% for m in messages %}{{ 'x' + m['tool_calls'] | default(none) }}{% endfor %}"


@pytest.fixture(scope="module")
def tiny():
    return load_model(ModelSection(), seed=0)


def model(folder, template=CHAT_TEMPLATE, special=()):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return load_float32(write_checkpoint(folder / "model", "llama", tokenizer, vocab_size=528))


def rows_of(num=20, **changes):
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(num)]
    for row, change in changes.items():
        rows[int(row.removeprefix("row"))].update(change)
    return rows


def check(folder, monkeypatch, loaded, rows, **keys):
    """Check the rows as a run would; what was said."""
    monkeypatch.chdir(folder)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"task.num_train": len(rows) - 4, "task.num_heldout": 4}
    recipe = build_recipe(SETTINGS, {**counts, **{key.replace("__", "."): value for key, value in keys.items()}})
    bundle = SimpleNamespace(
        loaded=loaded,
        recipe=recipe,
        prompt=lambda problem: encode_problem(loaded, problem, recipe.model.chat, recipe.model.system),
    )
    said = []
    check_encodable(recipe, [load_task(recipe.task[0], recipe.run.seed)], bundle, said.append)
    return said


# -- too long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 7, 19])
def test_a_prompt_without_room_for_a_completion_is_refused_wherever_it_stands(tmp_path, monkeypatch, tiny, row):
    long = {f"row{row}": {"prompt": "1 + " * 700 + "1 ="}}
    with pytest.raises(ValueError, match=rf"sums.jsonl, line {row + 1}\): its prompt has \d+ tokens, but the context"):
        check(tmp_path, monkeypatch, tiny, rows_of(**long))


def test_a_prompt_that_leaves_less_than_a_completion_says_what_would_fit(tmp_path, monkeypatch):
    loaded = model(tmp_path)
    rows = rows_of(row5={"prompt": "1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 ="})
    size = len(encode_problem(loaded, Problem("a", "t", rows[5]["prompt"])).token_ids)
    left = CONTEXT_LENGTH - size
    assert check(tmp_path, monkeypatch, loaded, rows, rollout__max_new_tokens=left)
    with pytest.raises(ValueError, match=rf"line 6.*1 of \d+ prompts is too long.*max_new_tokens to {left} or less"):
        check(tmp_path, monkeypatch, loaded, rows, rollout__max_new_tokens=left + 1)


def test_a_solution_must_fit_behind_its_prompt_where_it_is_taught(tmp_path, monkeypatch):
    loaded = model(tmp_path)
    rows = [{**row, "solution": row["answer"]} for row in rows_of()]
    rows[3]["solution"] = "1 + 1 = 2. " * 20 + rows[3]["answer"]
    columns = {"task__solution_column": "solution", "task__num_train": 19, "task__num_heldout": 1}
    check(tmp_path, monkeypatch, loaded, rows, **columns)
    with pytest.raises(
        ValueError, match=r"line 4\): its prompt of \d+ and its worked solution of \d+ tokens do not fit"
    ):
        check(tmp_path, monkeypatch, loaded, rows, **columns, warm_start__num_steps=2)


@pytest.mark.parametrize("fits", [True, False])
def test_a_worked_conversation_must_fit_as_a_whole(tmp_path, monkeypatch, fits):
    def turns(words):
        roles = ("user", "assistant", "user", "assistant")
        return [{"role": role, "content": f"{number} {words}"} for number, role in enumerate(roles)]

    rows = [{"messages": turns("1 + 1 " * 12 if number == 3 and not fits else number)} for number in range(20)]
    columns = {
        "task__prompt_column": "messages",
        "task__solution_column": "messages",
        "task__answer_column": "messages",
    }
    settings = {**columns, "task__verifiers": [{"name": "exact"}], "task__num_train": 16, "task__num_heldout": 4}
    settings |= {"warm_start__num_steps": 2, "train__num_steps": 0}
    loaded = model(tmp_path)
    if fits:
        check(tmp_path, monkeypatch, loaded, rows, **settings)
        return
    with pytest.raises(ValueError, match=r"line 4\).*(do not fit the|but the) context of model"):
        check(tmp_path, monkeypatch, loaded, rows, **settings)


def test_supervised_training_alone_needs_room_for_its_solutions_only(tmp_path, monkeypatch):
    loaded = model(tmp_path)
    rows = rows_of(row5={"prompt": "1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 ="})
    size = len(encode_problem(loaded, Problem("a", "t", rows[5]["prompt"])).token_ids)
    budget = CONTEXT_LENGTH - size + 2
    settings = {"rollout__max_new_tokens": budget, "warm_start__num_steps": 2, "train__num_steps": 0}
    check(tmp_path, monkeypatch, loaded, rows, **settings, task__num_train=19, task__num_heldout=1)


def test_a_problem_with_nothing_to_learn_from_is_refused_where_it_would_be_taught(tmp_path, monkeypatch, tiny):
    settings = {"task__answer_column": "", "task__verifiers": [{"name": "tests.support.rewards:always"}]}
    check(tmp_path, monkeypatch, tiny, rows_of(), **settings)
    with pytest.raises(ValueError, match=r"line \d+\) has no solution and no answer to learn from"):
        check(tmp_path, monkeypatch, tiny, rows_of(), **settings, warm_start__num_steps=2)


def test_right_answers_longer_than_a_completion_are_said(tmp_path, monkeypatch, tiny):
    said = check(tmp_path, monkeypatch, tiny, rows_of(row2={"answer": "123456789"}))
    assert said == [
        "warning: 1 of 20 right answers of 'sums' can never be given whole: they take up to 9 tokens, and "
        "rollout.max_new_tokens is 6"
    ]


# -- templates ---------------------------------------------------------------------------------------------------------


def chats(system=None):
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [{**row, "prompt": [*turns, {"role": "user", "content": row["prompt"]}]} for row in rows_of()]


def test_a_template_that_refuses_a_role_is_refused_with_the_row(tmp_path, monkeypatch):
    loaded = model(tmp_path, GEMMA)
    check(tmp_path, monkeypatch, loaded, chats())
    rows = chats()
    rows[11] = chats("Be brief.")[11]
    with pytest.raises(ValueError, match=r"sums.jsonl, line 12\): the chat template .* System role not supported"):
        check(tmp_path, monkeypatch, loaded, rows)
    with pytest.raises(ValueError, match="System role not supported"):
        check(tmp_path, monkeypatch, loaded, rows_of(), model__system="Be brief.")


def test_a_template_with_an_error_of_its_own_is_a_sentence(tmp_path, monkeypatch):
    loaded = model(tmp_path)
    loaded.tokenizer.chat_template = BROKEN
    with pytest.raises(ValueError, match=r"line \d+\): the chat template of model .* fails on its messages: TypeError"):
        check(tmp_path, monkeypatch, loaded, chats())


def test_plain_prompts_for_a_chat_model_are_said_once(tmp_path, monkeypatch, tiny):
    loaded = model(tmp_path)
    (said,) = check(tmp_path, monkeypatch, loaded, rows_of())
    assert "each becomes one user's message" in said
    (said,) = check(tmp_path, monkeypatch, loaded, rows_of(), model__chat=False)
    assert "without its chat template" in said
    assert check(tmp_path, monkeypatch, loaded, rows_of(), model__chat=True) == []
    assert check(tmp_path, monkeypatch, loaded, chats()) == []
    assert check(tmp_path, monkeypatch, tiny, rows_of()) == []


# -- what decoding removes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["<answer>", "The answer: <answer>", "<answer> "])
def test_an_answer_marker_that_decoding_removes_is_refused(tmp_path, monkeypatch, marker):
    loaded = model(tmp_path, special=["<answer>", "</answer>"])
    with pytest.raises(ConfigError, match=r"task.answer_after = .*'<answer>' is a special token"):
        check(tmp_path, monkeypatch, loaded, rows_of(), task__answer_after=marker)
    check(tmp_path, monkeypatch, loaded, rows_of(), task__answer_after="<final>")


def test_a_stop_string_that_decoding_removes_is_refused_unless_it_ends_completions_itself(tmp_path, monkeypatch):
    loaded = model(tmp_path, special=["</answer>"])
    with pytest.raises(ConfigError, match=r"rollout.stop = '</answer>': .* no completion would ever end there"):
        check(tmp_path, monkeypatch, loaded, rows_of(), rollout__stop=["\n", "</answer>"])
    check(tmp_path, monkeypatch, loaded, rows_of(), rollout__stop=["\n", "<|im_end|>", "so"])


# -- the fast way and the slow one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("enough", [0, 20, 10**6])
@pytest.mark.parametrize("kind", ["tiny", "chat"])
def test_sizes_are_those_of_the_slow_way_or_bounds_that_are_enough(tmp_path, tiny, kind, enough):
    loaded = tiny if kind == "tiny" else model(tmp_path)
    texts = [
        "1 + 2 =",
        "12 apples and 7 pears " * 2,
        "\u00e9\u00e8 \u221e \U0001f916",
        "\ufdfa",
        "<|im_end|> x",
        " ",
        "a",
    ]
    problems = [Problem(str(number), "t", text) for number, text in enumerate(texts)]
    slow = [len(encode_problem(loaded, problem).token_ids) for problem in problems]
    for size, true in zip(prompt_sizes(loaded, problems, "auto", "", enough), slow, strict=True):
        assert size == true or true <= size <= enough
    slow = [len(encode_solution(loaded, Prompt(problems[0], ()), text)) for text in texts]
    for size, true in zip(solution_sizes(loaded, texts, [enough] * len(texts)), slow, strict=True):
        assert size == true or true <= size <= enough


def test_a_bound_that_does_not_hold_is_replaced_by_the_slow_way(monkeypatch, tiny):
    problems = [Problem(str(number), "t", "1 + 2 =") for number in range(5)]
    slow = [len(encode_problem(tiny, problem).token_ids) for problem in problems]
    monkeypatch.setattr("heliostat.models.prompts.token_counts.SLACK", -20)
    assert prompt_sizes(tiny, problems, "auto", "", 100) == slow
