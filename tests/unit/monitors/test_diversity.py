from dataclasses import replace

import pytest

from heliostat.monitors.diversity import AnswerDiversity, DuplicatePrompts, TextRepetition
from heliostat.types import Batch, Turn
from tests.support.batches import completion, group


def finish(signal, batch):
    return signal.finish(signal.measure(batch))


def test_answers_of_two_groups():
    texts = [["3", "3", "4", "5"], ["7", "7", "7", "7"]]
    rewards = [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    batch = Batch(
        tuple(group([completion([1], text=t) for t in row], r) for row, r in zip(texts, rewards, strict=True))
    )
    numbers = finish(AnswerDiversity(lambda g, c: c.text), batch)
    assert numbers["answers/collision"] == pytest.approx((2 / 12 + 1) / 2)
    assert numbers["answers/effective"] == pytest.approx(2 / (2 / 12 + 1))
    assert numbers["answers/top_share"] == pytest.approx((2 / 4 + 1) / 2)
    assert numbers["answers/distinct_correct"] == 2.0, "a group without a right answer counts nothing"


def test_all_answers_different_have_no_effective_number():
    batch = Batch((group([completion([1], text=t) for t in "ab"]),))
    assert "answers/effective" not in finish(AnswerDiversity(lambda g, c: c.text), batch)


def test_repetition_is_a_mean_over_completions_and_groups():
    loop = completion([1, 2] * 40, text="no no " * 40)
    fine = completion(range(80), text="all of these words are different from one another, mostly")
    numbers = finish(TextRepetition(), Batch((group([loop, fine]), group([fine, fine]))))
    assert numbers["text/loops"] == 0.25
    assert numbers["text/rep4"] == pytest.approx((1 - 2 / 77) / 4)
    assert numbers["text/distinct1"] == pytest.approx((80 / 160 + 80 / 160) / 2)
    assert numbers["text/distinct4"] == pytest.approx((79 / 154 + 77 / 154) / 2)
    assert 0 < numbers["text/zlib"] < 1


def test_prompts_that_come_twice():
    made = [group([completion([1])], prompt=(index,)) for index in (1, 2, 1, 1)]
    assert finish(DuplicatePrompts(), Batch(tuple(made))) == {"text/duplicate_prompts": 0.5}


def test_worlds_that_differ_behind_one_prompt_are_no_duplicates():
    def episodes(problem_id):
        made = group([replace(completion([1]), turns=(Turn(0, 1),))], prompt=(1,))
        problem = replace(made.group.prompt.problem, problem_id=problem_id)
        return replace(made, group=replace(made.group, prompt=replace(made.group.prompt, problem=problem)))

    batch = Batch(tuple(episodes(name) for name in ("seed-1", "seed-2", "seed-3", "seed-1")))
    assert finish(DuplicatePrompts(), batch) == {"text/duplicate_prompts": 0.25}
