"""Streaming equals batch: pieces measured apart and merged give the numbers of the whole."""

import pytest

from heliostat.monitors.diversity import AnswerDiversity, DuplicatePrompts, TextRepetition
from heliostat.monitors.entropy import Concentration, EntropyDrift, ThoughtAndAnswer, TokenEntropy
from heliostat.monitors.signal import Monitor, merge
from heliostat.tracking import check_key
from heliostat.types import Batch
from tests.support.batches import random_batch

MONITOR = Monitor(
    (
        TokenEntropy(("a", "b")),
        ThoughtAndAnswer(lambda g, c: len(c.token_ids) // 2),
        Concentration(),
        EntropyDrift(),
        AnswerDiversity(lambda g, c: c.text),
        TextRepetition(),
    )
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_streaming_equals_batch(seed, cut):
    batch = random_batch(seed)
    whole = MONITOR.finish(MONITOR.measure(batch))
    pieces = [Batch(batch.groups[:cut]), Batch(batch.groups[cut:])]
    merged = MONITOR.finish(merge(MONITOR.measure(piece) for piece in pieces))
    assert merged == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert len(whole) >= 14


def test_every_number_is_declared():
    for key in MONITOR.finish(MONITOR.measure(random_batch(0))):
        check_key(key)


def test_keys_do_not_depend_on_the_batch():
    """Ranks add their moments up by position: an empty or one-sided batch must have the same ones."""
    monitor = Monitor((*MONITOR.signals, DuplicatePrompts()))
    assert list(monitor.measure(Batch(()))) == list(monitor.measure(random_batch(1)))
    assert monitor.finish(monitor.measure(Batch(()))) == {}
