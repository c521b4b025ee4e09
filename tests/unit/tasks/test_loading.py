"""Settings are checked before anything is loaded; splits are disjoint, seeded and independent."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from heliostat.config import ConfigError, TaskSection
from heliostat.tasks import Task, list_tasks, load_task, show_task
from heliostat.tasks.answers import question_key
from heliostat.tasks.sources.reasoning_gym import Gym
from tests.support.tasks import REWARDS

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def load(name: str = "chain_sum", seed: int = 0, num_train: int = 12, num_heldout: int = 5, **keys: Any) -> Task:
    section = TaskSection(name=f"reasoning-gym/{name}", num_train=num_train, num_heldout=num_heldout, **keys)
    return load_task(section, seed)


def questions(problems: tuple[Any, ...]) -> list[str]:
    return [question_key(problem.columns["question"]) for problem in problems]


@pytest.mark.slow
def test_the_split_has_the_sizes_asked_for_and_no_question_twice() -> None:
    task = load(num_train=300, num_heldout=100, settings=SUMS)
    assert (len(task.train), len(task.heldout)) == (300, 100)
    assert len(set(questions(task.train + task.heldout))) == 400
    assert len({problem.problem_id for problem in task.train + task.heldout}) == 400
    assert {problem.task for problem in task.train + task.heldout} == {task.name} == {"reasoning-gym/chain_sum"}


def test_the_split_depends_on_the_seed_and_heldout_not_on_the_size_of_train() -> None:
    task = load(num_train=30, settings=SUMS)
    assert load(num_train=30, settings=SUMS) == task
    assert load(num_train=300, settings=SUMS).heldout == task.heldout
    assert load(num_train=300, settings=SUMS).train[:30] == task.train
    assert load(num_train=30, settings=SUMS, seed=1).heldout != task.heldout
    assert load(num_train=30, settings=SUMS, seed=1).train != task.train


@pytest.fixture(scope="module")
def other_gym() -> Iterator[Gym]:
    gym = Gym()
    yield gym
    gym.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["word_ladder", "ransom_note", "acre"])
def test_another_interpreter_draws_the_same_problems(name: str, other_gym: Gym) -> None:
    """These data sets depend on the hash seed of the interpreter, or on their own size."""
    task = load(name, num_train=2, num_heldout=1)
    heldout, train = other_gym.call("draw", name, {}, 0, 1, 2)
    drawn = [entry["question"] for entry in heldout + train]
    assert drawn == [problem.columns["question"] for problem in task.heldout + task.train]


@pytest.mark.slow
def test_an_interpreter_that_ended_is_replaced_and_one_that_dies_at_work_says_so(other_gym: Gym) -> None:
    assert "chain_sum" in other_gym.call("catalog")
    first = other_gym.child.process
    first.kill()
    first.wait()

    def kill_the_second() -> None:
        while other_gym.child is None or other_gym.child.process is first:
            time.sleep(0.01)
        other_gym.child.process.kill()

    threading.Thread(target=kill_the_second, daemon=True).start()
    with pytest.raises(RuntimeError, match=r"makes reasoning-gym problems died \(exit code -9\)"):
        other_gym.call("catalog")


def test_generators_that_print_do_not_disturb_the_output(capfd: pytest.CaptureFixture[str]) -> None:
    load("bf", num_train=3, num_heldout=1)
    assert capfd.readouterr() == ("", "")


def test_a_data_set_that_runs_out_of_questions_says_how_many_there_are() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 10 * 10 * 2 questions
    task = load(num_train=150, num_heldout=20, settings=tiny)
    assert len(set(questions(task.train + task.heldout))) == 170
    with pytest.raises(ValueError, match=r"gave only 200 different questions, but num_train \+ num_heldout = 220"):
        load(num_train=200, num_heldout=20, settings=tiny)


def test_template_and_answer_marker_shape_prompt_and_solution() -> None:
    task = load(template="{question}\nAnswer with digits only.", answer_after="Answer: ")
    for problem in task.train:
        assert problem.prompt == problem.columns["question"] + "\nAnswer with digits only."
        assert problem.solution == f"Answer: {problem.answer}"
    short = load(template="{expression}=", solution="columns", settings=SUMS)
    assert short.train[0].prompt == short.train[0].columns["metadata"]["expression"] + "="
    assert short.answer_after == "#"


def test_a_label_renames_the_task() -> None:
    task = load(label="easy sums", settings=SUMS)
    assert task.name == task.train[0].task == "easy sums"
    assert [weighted.name for weighted in task.verifiers] == ["reasoning-gym"]


def test_data_sets_without_an_answer_use_their_example_of_one() -> None:
    problem = load("propositional_logic", num_train=1, num_heldout=1).train[0]
    assert problem.columns["answer"] is None
    assert problem.answer == problem.solution == problem.columns["metadata"]["example_answer"]
    assert load("rush_hour", num_train=1, num_heldout=1).train[0].solution is None


REFUSED = [
    ({"name": "reasoning-gym/chain_sun"}, "did you mean 'chain_sum'"),
    ({"name": "reasoninggym/chain_sum"}, "did you mean 'reasoning-gym/chain_sum'"),
    ({"name": "reasoning-gym"}, "it is 'file' or 'reasoning-gym/<dataset>'"),
    ({"shapd": True}, r"unknown key task.shapd \(did you mean '.*shaped'\?\)"),
    ({"path": "x.jsonl"}, "unknown key task.path"),
    ({"timeout_s": 0}, "task.timeout_s = 0"),
    ({"timeout_s": "soon"}, "task.timeout_s = .soon."),
    ({"on_failure": "explode"}, "task.on_failure = .explode."),
    ({"num_workers": 0}, "task.num_workers = 0"),
    ({"template": "no question"}, r"must contain \{question\}"),
    ({"template": "{question.__class__}"}, r"must contain \{question\}"),
    ({"template": "{question"}, "is not a format text"),
    ({"template": "{expresion}"}, "did you mean 'expression'"),
    ({"settings": {"max_term": 3}}, r"unknown key task.settings.max_term \(did you mean '.*max_terms'\?\)"),
    ({"settings": {"max_terms": "many"}}, "task.settings.max_terms = .many."),
    ({"settings": {"max_terms": 1}}, "max_terms must be >= min_terms"),
    ({"settings": {"seed": 3}}, "task.settings.seed is decided by the run's seed"),
    ({"solution": "column"}, "did you mean 'columns'"),
    ({"answer_after": "1"}, "set task.answer_after to a marker that the answer does not contain"),
    ({"verifiers": [{"weight": 1.0}]}, "needs a name"),
    ({"verifiers": [{"name": "numerc"}]}, "unknown verifier 'numerc' .did you mean 'numeric'"),
    ({"verifiers": [{"name": "exact"}, {"name": "exact"}]}, "names 'exact' twice"),
    ({"verifiers": [{"name": "exact", "weight": 0}]}, "at least one verifier with a positive weight"),
    ({"verifiers": [{"name": "exact", "weight": -1}]}, "weight = -1"),
    ({"verifiers": [{"name": "exact", "sees": "all"}]}, "sees = .all."),
    ({"verifiers": [{"name": "numeric", "tolerence": 1}]}, "did you mean '.*tolerance'"),
    ({"verifiers": [{"name": "numeric", "tolerance": 2.0}]}, "tolerance must be"),
    ({"verifiers": [{"name": "no_such:f"}]}, "cannot import 'no_such'"),
    ({"verifiers": [{"name": f"{REWARDS}:half", "factor": 2}]}, "takes no argument 'factor'"),
    ({"verifiers": [{"name": f"{REWARDS}:log_call"}]}, "needs 'path'; the data has: answer, metadata, question"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_wrong_settings_are_refused_in_one_line(keys: dict[str, Any], message: str) -> None:
    section = TaskSection(**{"name": "reasoning-gym/chain_sum", "num_train": 30, "num_heldout": 2, **keys})
    with pytest.raises(ValueError, match=message) as caught:
        load_task(section, 0)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError) or "answer_after" in keys


def test_verifiers_that_compare_need_answers() -> None:
    with pytest.raises(ConfigError, match="verifier 'exact' compares with an oracle answer, but problem"):
        load("boxnet", num_train=1, num_heldout=1, verifiers=[{"name": "exact"}])


def test_the_composite_task_mixes_others() -> None:
    parts = [{"name": "gcd", "weight": 1.0, "config": {}}, {"name": "lcm", "weight": 1.0, "config": {}}]
    task = load("composite", num_train=20, settings={"datasets": parts})
    assert {problem.columns["metadata"]["source_dataset"] for problem in task.train} == {"gcd", "lcm"}


def test_the_catalog_describes_every_task_in_a_line() -> None:
    catalog = list_tasks()
    assert len(catalog) > 100
    assert "+ and -" in catalog["reasoning-gym/chain_sum"]
    assert all(line and "\n" not in line for line in catalog.values())


def test_a_shown_task_has_settings_defaults_and_examples() -> None:
    text = show_task("reasoning-gym/chain_sum")
    assert "max_terms = 6   (int)" in text
    assert text.count("\nanswer: ") == 3
    assert "no examples: task.settings: composite refuses them" in show_task("composite")
    with pytest.raises(ConfigError, match="did you mean 'chain_sum'"):
        show_task("chain_sums")
    assert "prompt_column = 'prompt'" in show_task("file")
