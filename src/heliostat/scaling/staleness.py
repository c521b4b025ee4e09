r"""The gain of sampling in parallel with training: throughput against the staleness that is allowed.

Update ``k`` trains on the ``k``-th batch of ``B`` completions in the order of their start. A completion of that batch
may start once update ``k - 1 - s`` is done: the weights that it starts with are then at most ``s`` updates older than
those that it trains. Samplers are ``c`` slots that each decode one completion at a time; the trainer takes ``T``
seconds for an update (the sync of weights included), as soon as its batch is there.

    s = 0           S + T           per update, S the mean time in which c slots make a batch
    s -> infinity   max(S*, T)      S* = B E[length] t / c: slots that are never empty

For one slot that makes whole batches (``B = c = 1``) and ``s = 1`` it is ``E max(S, T)``: both begin together, and the
next pair begins when both are done.

Left out: the effect of staleness on learning, and weights that change in the middle of a completion.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from random import Random

from heliostat.arguments import listed


@dataclass(frozen=True, slots=True)
class Throughput:
    """The throughput of a simulated run.

    Attributes:
        update_s: seconds per update, after the first ``skipped`` ones.
        sampler_busy, trainer_busy: shares of that time.
        mean_staleness: updates between the weights that began a completion and those it trained, on average.
    """

    update_s: float
    sampler_busy: float
    trainer_busy: float
    mean_staleness: float


def simulate(
    durations_s: Sequence[float], batch_size: int, num_slots: int, train_s: float, bound: int, skipped: int = 0
) -> Throughput:
    """Run samplers and a trainer over completions of given durations, in order.

    Args:
        durations_s: seconds each completion takes to decode; whole batches are trained on, a rest is not begun.
        bound: the largest staleness ``s``.
        skipped: updates before the clock starts, in which the pipeline fills.

    **Limits**: ``bound = 0``, every batch's sampling time plus ``train_s``, added up. Never slower for a larger
    ``bound``, for the same durations. ``bound`` of at least the number of updates, as if there were none.
    """
    durations_s = listed(durations_s)
    num_updates = len(durations_s) // batch_size
    if not 0 <= skipped < num_updates:
        raise ValueError(f"skipped = {skipped} leaves nothing of {num_updates} updates")
    free = [0.0] * num_slots  # when each slot is free again: a heap
    trained = [0.0]  # when version v of the weights is there
    ages = busy = clock = 0.0
    for update in range(1, num_updates + 1):
        released = trained[max(0, update - 1 - bound)]
        ready = 0.0
        for duration in durations_s[(update - 1) * batch_size : update * batch_size]:
            begins = max(heapq.heappop(free), released)
            heapq.heappush(free, begins + duration)
            ready = max(ready, begins + duration)
            if update > skipped:
                # The newest weights at that moment; some of them may be newer than the bound asks for.
                version = sum(1 for done in trained[update - bound if update > bound else 1 :] if done <= begins)
                ages += update - 1 - (version + max(0, update - 1 - bound))
                busy += duration
        trained.append(max(ready, trained[-1]) + train_s)
        if update == skipped:
            clock = trained[-1]
    counted = num_updates - skipped
    update_s = (trained[-1] - clock) / counted
    return Throughput(
        update_s=update_s,
        sampler_busy=busy / counted / num_slots / update_s if update_s else 0.0,
        trainer_busy=train_s / update_s if update_s else 0.0,
        mean_staleness=ages / counted / batch_size,
    )


def synchronous_s(durations_s: Sequence[float], batch_size: int, num_slots: int, train_s: float) -> float:
    """Compute the seconds per update without any staleness: the mean time of a batch on empty slots, plus training."""
    batches = list(_batches(listed(durations_s), batch_size))
    return sum(_batch_s(batch, num_slots) for batch in batches) / len(batches) + train_s


def asynchronous_s(durations_s: Sequence[float], batch_size: int, num_slots: int, train_s: float) -> float:
    """Compute the seconds per update without any bound: the slower of slots that are never empty and of the trainer."""
    durations_s = listed(durations_s)
    return max(sum(durations_s) / len(durations_s) * batch_size / num_slots, train_s)


def _batch_s(durations_s: Sequence[float], num_slots: int) -> float:
    free = [0.0] * num_slots
    for duration in durations_s:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def _batches(durations_s: Sequence[float], batch_size: int) -> Iterator[Sequence[float]]:
    for start in range(0, len(durations_s) - batch_size + 1, batch_size):
        yield durations_s[start : start + batch_size]


def heavy_tailed(num: int, mean: float, spread: float, longest: float, seed: int = 0) -> list[float]:
    """Draw log-normal lengths of the given mean before they are cut off at ``longest``.

    Args:
        spread: standard deviation of the logarithm; 0 gives equal lengths.
    """
    random = Random(seed)
    location = -(spread**2) / 2
    return [min(longest, mean * exp(random.gauss(location, spread))) for _ in range(num)]
