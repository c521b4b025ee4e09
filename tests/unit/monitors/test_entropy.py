import math
from itertools import product

import numpy as np
import pytest

from heliostat.monitors.entropy import Concentration, EntropyDrift, ThoughtAndAnswer, TokenEntropy
from heliostat.types import Batch
from tests.support.batches import completion, group


def finish(signal, batch):
    return signal.finish(signal.measure(batch))


def test_entropy_is_a_mean_over_tokens_of_each_task():
    batch = Batch(
        (
            group([completion([1, 2], entropy=[1.0, 2.0]), completion([1], entropy=[3.0])], task="a"),
            group([completion([1], entropy=[7.0])], task="b"),
        )
    )
    assert finish(TokenEntropy(("a", "b", "c")), batch) == {"policy/entropy:a": 2.0, "policy/entropy:b": 7.0}
    assert finish(TokenEntropy(("a",)), batch) == {}


def test_thought_and_answer_are_cut_where_the_answer_begins():
    batch = Batch((group([completion([1, 2, 3], entropy=[1, 2, 6]), completion([9], entropy=[100])]),))
    start = lambda g, c: 2 if len(c.token_ids) == 3 else None  # noqa: E731
    assert finish(ThoughtAndAnswer(start), batch) == {"policy/entropy_thought": 1.5, "policy/entropy_answer": 6.0}


def test_the_collision_of_tokens_is_unbiased():
    """Over every pair of tokens two positions can draw: the mean probability drawn is the mean of sum p^2."""
    first, second = np.array([0.7, 0.2, 0.1]), np.array([0.25] * 4)
    expected = 0.0
    for a, b in product(range(3), range(4)):
        batch = Batch((group([completion([a, b], logp=np.log([first[a], second[b]]))]),))
        expected += first[a] * second[b] * Concentration().measure(batch)["collision"].value
    assert expected == pytest.approx(((first**2).sum() + (second**2).sum()) / 2, rel=1e-6)


def test_concentration_limits():
    uniform = Batch((group([completion([0] * 5, logp=[-math.log(8)] * 5)]),))
    assert finish(Concentration(), uniform) == {"policy/renyi2": pytest.approx(math.log(8)), "policy/saturated": 0.0}
    certain = Batch((group([completion([0] * 5, logp=[0.0] * 5)]),))
    assert finish(Concentration(), certain) == {"policy/renyi2": 0.0, "policy/saturated": 1.0}
    assert finish(Concentration(), Batch(())) == {}


def test_drift_is_the_derivative_of_entropy_along_the_natural_gradient():
    """A policy over four actions, each present as often as it is likely (in 20ths)."""
    counts, rewards = np.array([10, 6, 3, 1]), np.array([1.0, 0.0, 1.0, 0.5])
    p = counts / counts.sum()
    members = [completion([a], logp=[math.log(p[a])]) for a in range(4) for _ in range(counts[a])]
    batch = Batch((group(members, [float(rewards[a]) for a in range(4) for _ in range(counts[a])]),))

    def entropy(eta):
        q = p * np.exp(eta * rewards)
        q /= q.sum()
        return -(q * np.log(q)).sum()

    slope = (entropy(1e-5) - entropy(-1e-5)) / 2e-5
    assert finish(EntropyDrift(), batch)["policy/entropy_drift"] == pytest.approx(slope, rel=1e-5)


def test_drift_limits():
    same = Batch((group([completion([1, 2]), completion([3])], [1.0, 0.0]),))
    assert finish(EntropyDrift(), same)["policy/entropy_drift"] == pytest.approx(0.0, abs=1e-12)
    unpushed = Batch((group([completion([1], [-3.0]), completion([3], [-0.1])], [1.0, 1.0]),))
    assert finish(EntropyDrift(), unpushed)["policy/entropy_drift"] == pytest.approx(0.0, abs=1e-12)
