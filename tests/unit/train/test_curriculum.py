from collections import Counter

from heliostat.train.curriculum import Curriculum


def test_each_epoch_visits_everything_once_in_its_own_order():
    stream = Curriculum(list(range(10)), seed=1)
    seen = [item for step in range(5) for item in stream.next(step, 4)]
    assert Counter(seen[:10]) == Counter(range(10)) == Counter(seen[10:])
    assert seen[:10] != seen[10:]


def test_it_depends_on_the_step_alone():
    assert Curriculum(list(range(10)), 1).next(7, 3) == Curriculum(list(range(10)), 1).next(7, 3)
    assert Curriculum(list(range(50)), 1).next(0, 20) != Curriculum(list(range(50)), 2).next(0, 20)


def test_more_per_step_than_there_are_items():
    assert Counter(Curriculum(["a", "b"], 0).next(0, 5)) in (Counter(a=3, b=2), Counter(a=2, b=3))
