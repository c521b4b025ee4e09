from collections import Counter

import numpy as np

from heliostat.train.data.curriculum import Curriculum, ShuffledEpochs
from heliostat.types import Completion, Group, Problem, Prompt, StopReason, Verdict


def test_each_epoch_visits_everything_once_in_its_own_order():
    stream = ShuffledEpochs(list(range(10)), seed=1)
    seen = [item for step in range(5) for item in stream.next(step, 4)]
    assert Counter(seen[:10]) == Counter(range(10)) == Counter(seen[10:])
    assert seen[:10] != seen[10:]


def test_it_depends_on_the_step_alone():
    assert ShuffledEpochs(list(range(10)), 1).next(7, 3) == ShuffledEpochs(list(range(10)), 1).next(7, 3)
    assert ShuffledEpochs(list(range(50)), 1).next(0, 20) != ShuffledEpochs(list(range(50)), 2).next(0, 20)


def test_more_per_step_than_there_are_items():
    assert Counter(ShuffledEpochs(["a", "b"], 0).next(0, 5)) in (Counter(a=3, b=2), Counter(a=2, b=3))


def problems(num):
    return [Problem(f"p{i}", "t", str(i)) for i in range(num)]


def graded(problem, successes):
    completion = Completion((1,), np.zeros(1, np.float32), np.zeros(1, np.float32), StopReason.EOS, "")
    verdicts = tuple(Verdict(float(s), bool(s)) for s in successes)
    return Group(Prompt(problem, (1,)), (completion,) * len(verdicts), verdicts)


def test_without_focus_it_is_plain_passes_and_remembers_nothing():
    items = problems(10)
    curriculum = Curriculum(items, seed=3)
    curriculum.update([graded(items[0], [1, 1])])
    assert curriculum.next(2, 4) == ShuffledEpochs(items, 3).next(2, 4)
    assert curriculum.state_dict() == {}


def test_draws_follow_one_minus_success():
    items = problems(40)
    curriculum = Curriculum(items, seed=0, focus=1.0)
    curriculum.update([graded(problem, [1, 1, 1, 0] if i < 20 else [0, 0]) for i, problem in enumerate(items)])
    drawn = Counter(problem.problem_id for step in range(4000) for problem in curriculum.next(step, 1))
    solved = sum(drawn[problem.problem_id] for problem in items[:20])
    assert abs(solved / 4000 - 0.25 / 1.25) < 0.02


def test_it_moves_on_from_what_is_solved_and_can_be_restored():
    items = problems(6)
    curriculum = Curriculum(items, seed=0, focus=1.0)
    for _ in range(30):
        curriculum.update([graded(problem, [1, 1]) for problem in items[:4]])
    assert {problem.problem_id for problem in curriculum.next(0, 2)} == {"p4", "p5"}
    other = Curriculum(items, seed=0, focus=1.0)
    other.load_state_dict(curriculum.state_dict())
    assert [other.next(step, 3) for step in range(5)] == [curriculum.next(step, 3) for step in range(5)]
    everything = Curriculum(items, 0, 1.0, {problem.problem_id: 1.0 for problem in items})
    assert len(everything.next(0, 3)) == 3
