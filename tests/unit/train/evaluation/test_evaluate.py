import numpy as np
import pytest

from heliostat.train.evaluation.evaluate import Evaluation, ProblemResult, compare
from heliostat.train.evaluation.rows import eval_rows, evaluation_from_rows


def results(rates, n=4, task="t"):
    return Evaluation(tuple(ProblemResult(task, f"p{i}", n, round(r * n), r) for i, r in enumerate(rates)))


def test_paired_comparison_is_sharper_than_two_intervals():
    rng = np.random.default_rng(1)
    base = rng.random(100)
    first, second = results(np.round(base * 4) / 4), results(np.round(np.clip(base + 0.25, 0, 1) * 4) / 4)
    comparison = compare(first, second)
    assert comparison.significant
    assert comparison.ci95[1] - comparison.ci95[0] < first.ci95[1] - first.ci95[0]
    assert compare(second, first).difference == pytest.approx(-comparison.difference)
    assert not compare(first, first).significant


def test_what_one_model_alone_solved_is_counted():
    first, second = results([0.0, 0.25, 1.0, 0.0]), results([0.5, 0.0, 0.25, 0.25])
    assert (compare(first, second).num_only_first, compare(first, second).num_only_second) == (1, 2)
    assert (compare(second, first).num_only_first, compare(second, first).num_only_second) == (2, 1)
    assert compare(first, first).num_only_first == compare(first, first).num_only_second == 0


def test_models_without_common_problems_cannot_be_compared():
    other = Evaluation((ProblemResult("t", "elsewhere", 1, 1, 1.0),))
    with pytest.raises(ValueError, match="share no problem"):
        compare(results([1.0]), other)


def test_rows_and_back():
    evaluation = results([0.0, 0.5, 1.0])
    assert evaluation_from_rows(eval_rows(3, "after", evaluation)) == evaluation


def test_summaries_by_task():
    both = Evaluation(results([1.0], task="a").results + results([0.0, 0.0], task="b").results)
    assert {task: part.pass_at_1 for task, part in both.by_task().items()} == {"a": 1.0, "b": 0.0}
    assert both.ks == [1, 2, 4]
    assert both.summary()["pass@k"]["1"] == pytest.approx(both.pass_at_1)
