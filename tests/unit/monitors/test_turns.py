"""Trajectories turn by turn: exact counts on written ones, the same numbers in pieces, nothing without turns."""

import numpy as np
import pytest
import torch

from heliostat.monitors.signal import merge
from heliostat.monitors.turn_numbers import NUMBERS, number_of
from heliostat.monitors.turns import (
    SAMPLER_GAP,
    Trajectories,
    log_ratios,
    num_repeated,
    pieces,
    sampler_gap_metrics,
    sampler_gaps,
)
from heliostat.tracking import check_key
from heliostat.types import Batch, Completion, Problem, Prompt, StopReason, Turn
from tests.support.batches import group, random_batch

SIGNAL = Trajectories(lambda ids: "".join(" " if token == 9 else "x" for token in ids))
REPLY = (100, 101)
PROMPT = Prompt(Problem("p", "maze", "?"), (1, 2))


def trajectory(*turns, reason=StopReason.ENVIRONMENT_DONE, entropies=None, **records):
    """A trajectory of these turns' ids, with a reply of two tokens between them.

    ``records`` gives fields of ``Turn``, a value for every turn.
    """
    ids, spans = [], []
    for number, turn in enumerate(turns):
        ids += REPLY if number else ()
        own = {key: values[number] for key, values in records.items()}
        spans.append(Turn(len(ids), len(ids) + len(turn), **own))
        ids += turn
    size = sum(map(len, turns))
    entropy = np.full(size, 0.5) if entropies is None else np.asarray(entropies)
    logp = np.full(size, -1.0, dtype=np.float32)
    return Completion(tuple(ids), logp, entropy.astype(np.float32), reason, "", turns=tuple(spans))


def numbers(*completions):
    return SIGNAL.finish(SIGNAL.measure(Batch((group(completions),))))


def test_the_signals_of_two_trajectories():
    first = trajectory(
        [5, 6], [9], [5, 6], entropies=[1, 1, 4, 2, 2], num_calls=[2, 0, 1], num_errors=[1, 0, 1],
        is_invalid=[False, True, False],
    )  # fmt: skip
    second = trajectory([7, 8, 9], reason=StopReason.TURN_TRUNCATED, entropies=[3, 3, 3], num_calls=[0])
    found = numbers(first, second)
    assert found == pytest.approx(
        {
            "agent/turns": 2.0,
            "agent/calls": 1.5,
            "agent/valid_calls": 1 / 4,
            "agent/call_errors": 2 / 3,
            "agent/invalid": 1 / 4,
            "agent/empty_actions": 1 / 4,
            "agent/repeated_actions": 1 / 4,
            "agent/turn_truncated": 0.5,
            "agent/out_of_tokens": 0.0,
            "agent/out_of_turns": 0.0,
            "agent/environment_tokens": 4 / 12,
            "agent/entropy:1": 11 / 5,
            "agent/entropy:2": 4.0,
            "agent/entropy:3": 2.0,
        }
    )


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        (StopReason.TURN_TRUNCATED, "agent/turn_truncated"),
        (StopReason.MAX_TOKENS, "agent/out_of_tokens"),
        (StopReason.CONTEXT_FULL, "agent/out_of_tokens"),
        (StopReason.OUT_OF_TURNS, "agent/out_of_turns"),
    ],
)
def test_the_limits_of_trajectories_add_up_to_the_truncated_ones(reason, key):
    found = numbers(trajectory([5], reason=reason), trajectory([5]))
    limits = {name: found[f"agent/{name}"] for name in ("turn_truncated", "out_of_tokens", "out_of_turns")}
    assert found[key] == 0.5
    assert sum(limits.values()) == 0.5, "and a trajectory that its environment ended is none of them"


def test_no_share_of_calls_without_calls():
    assert "agent/call_errors" not in numbers(trajectory([5], [6]))


def test_later_turns_share_a_number():
    assert [number_of(turn) for turn in range(6)] == ["1", "2", "3", "4+", "4+", "4+"]
    found = numbers(trajectory(*[[5]] * 6, entropies=[1, 2, 3, 4, 5, 6]))
    assert [found[f"agent/entropy:{number}"] for number in NUMBERS] == [1, 2, 3, 5]


def test_one_action_said_again_and_again():
    assert num_repeated((PROMPT, trajectory([5]))) == 0
    assert num_repeated((PROMPT, trajectory(*[[5, 6]] * 4))) == 3
    assert num_repeated((PROMPT, trajectory([5], [6], [6, 5]))) == 0


def test_a_prefix_is_a_part_of_its_episode():
    """Its turns are counted before the sampled ones, and an action of it can be repeated; nothing of it is measured."""
    prompt = Prompt(PROMPT.problem, (1, 2), (5, *REPLY), prefix_turns=(Turn(0, 1),))
    member = prompt, trajectory([5], [6, 7])
    assert num_repeated(member) == 1
    assert [(number, len(values)) for number, values in pieces(member, np.zeros(3))] == [("2", 1), ("3", 2)]


def test_the_gap_by_turn():
    members = [(PROMPT, trajectory([5, 6], [7])), (PROMPT, trajectory([8]))]
    gen = torch.zeros(4)
    found = sampler_gap_metrics(sampler_gaps(members, torch.tensor([0.1, -0.3, 0.5, 0.2]), gen))
    assert found == pytest.approx({f"{SAMPLER_GAP}:1": 0.2, f"{SAMPLER_GAP}:2": 0.5})
    assert sampler_gaps([(PROMPT, Completion((5,), np.zeros(1), np.zeros(1), StopReason.EOS, ""))], gen, gen) == {}


def test_log_ratios_add_up_within_a_turn_and_not_over_turns():
    """A shift of 0.1 a token moves a turn of four tokens by 0.4: the number grows with sampled tokens."""
    member = PROMPT, trajectory([5] * 4, [6])
    found = log_ratios(member, np.asarray([0.1, 0.1, 0.1, 0.1, -0.3]))
    assert {key: mean.value for key, mean in found.items() if mean.count} == pytest.approx(
        {"agent/log_ratio:1": 0.4, "agent/log_ratio:2": 0.3}
    )
    assert all(mean.total == 0 for mean in log_ratios(member, np.zeros(5)).values())


def test_pieces_merge_to_the_whole():
    groups = [group([trajectory([5, 6], [7], num_calls=[1, 0]), trajectory([5])]), group([trajectory([9], [9], [9])])]
    whole = SIGNAL.finish(SIGNAL.measure(Batch(tuple(groups))))
    assert SIGNAL.finish(merge(SIGNAL.measure(Batch((one,))) for one in groups)) == pytest.approx(whole)
    assert list(SIGNAL.measure(Batch(()))) == list(SIGNAL.measure(Batch(tuple(groups))))
    for key in whole:
        check_key(key)


def test_completions_of_one_turn_have_none_of_it():
    assert SIGNAL.finish(SIGNAL.measure(random_batch(0))) == {}
