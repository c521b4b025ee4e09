import numpy as np
import pytest

from heliostat.tasks import Task
from heliostat.train.guard.signals import Answers, make_monitor
from heliostat.types import Batch, Completion, Group, Problem, Prompt, StopReason, TrainingGroup, Verdict


def written(nano, text):
    ids = tuple(nano.tokenizer.encode(text, add_special_tokens=False))
    numbers = np.zeros(len(ids), dtype=np.float32)
    return Completion(ids, numbers - 1, numbers, StopReason.EOS, text)


def group_of(*completions):
    verdicts = tuple(Verdict(0.0, False) for _ in completions)
    return Group(Prompt(Problem("p", "sums", "1 + 2 ="), (1, 2)), completions, verdicts)


@pytest.mark.parametrize("text", ["1 + 2 so 3", "so so 12", "  7 so so 8 9"])
def test_an_answer_begins_after_the_last_marker(nano, text):
    answers, completion = Answers({"sums": "so"}, nano), written(nano, text)
    group = group_of(completion)
    start = answers.start(group, completion)
    rest = nano.tokenizer.decode(list(completion.token_ids[start:]))
    assert rest.strip() == answers.text(group, completion) == text.rpartition("so")[2].strip()


def test_without_its_marker_the_whole_text_is_the_answer(nano):
    answers, completion = Answers({"sums": "so"}, nano), written(nano, " 12 ")
    assert answers.start(group_of(completion), completion) is None
    assert answers.text(group_of(completion), completion) == "12"
    plain = Answers({"sums": ""}, nano)
    assert plain.start(group_of(completion), completion) is None
    assert plain.text(group_of(completion), completion) == "12"


def test_thoughts_are_told_from_answers_only_where_a_task_has_a_marker(nano):
    import torch

    batch = Batch((TrainingGroup(group_of(written(nano, "1 so 3")), torch.zeros(1)),))
    for marker, known in (("so", True), ("", False)):
        monitor = make_monitor([Task("sums", (), (), (), answer_after=marker)], nano)
        assert ("policy/entropy_answer" in monitor.finish(monitor.measure(batch))) == known
