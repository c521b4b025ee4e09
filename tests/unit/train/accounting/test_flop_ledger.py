"""The ledger's totals are the sums of their parts, and what it charges is what torch counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from heliostat.models import BACKWARD_COST, forward_flops
from heliostat.rollout import RolloutCounts
from heliostat.train.accounting.flop_ledger import COMPUTE_PHASES, Ledger
from heliostat.train.update.counts import UpdateCounts
from tests.support.nano import make_nano

NANO = make_nano()


class Row:
    """As much of a row as counting needs."""

    def __init__(self, group, context_length, num_tokens):
        self.group, self.context_length, self.num_tokens = group, context_length, num_tokens
        self.length = num_tokens


GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.lists(st.tuples(st.sampled_from(COMPUTE_PHASES), st.floats(0, 1e15)), max_size=5))
def test_totals_are_the_sums_of_their_parts(groups, charges):
    """Counting two halves of the work apart gives the same as counting it together, to float accuracy."""
    together, apart, expected = Ledger(), Ledger(), dict.fromkeys(COMPUTE_PHASES, 0.0)
    rows = [Row(number, context, n) for number, (context, lengths) in enumerate(groups) for n in lengths]
    whole = UpdateCounts()
    whole.add(rows, shared_prompt=True)
    together.charge_update("update", NANO, whole)
    for number in range(len(groups)):
        part = UpdateCounts()
        part.add([row for row in rows if row.group == number], shared_prompt=True)
        apart.charge_update("update", NANO, part)
    for phase, flops in charges:
        together.charge(phase, flops)
        apart.charge(phase, flops)
        expected[phase] += flops
    assert together.flops == pytest.approx(apart.flops, rel=1e-9)
    assert together.unshared == pytest.approx(apart.unshared, rel=1e-9)
    update = together.flops["update"] - expected["update"]
    parts = sum(flops for phase, flops in expected.items() if phase != "eval") + update
    assert together.spent == pytest.approx(parts, rel=1e-9)
    assert together.spent <= together.spent_unshared * (1 + 1e-12)
    if all(len(lengths) == 1 for _, lengths in groups):
        assert together.spent == together.spent_unshared


def test_sharing_is_counted_once_and_reported_both_ways():
    counts = RolloutCounts()
    counts.add_prompts([100], group_size=8)
    ledger = Ledger()
    ledger.charge_rollout("rollout", NANO, counts)
    assert ledger.unshared["rollout"] == pytest.approx(8 * ledger.flops["rollout"])
    assert ledger.flops["rollout"] == pytest.approx(forward_flops(NANO, 100, 50.5, num_logits=1))


def test_evaluations_are_kept_out_of_what_was_spent():
    ledger = Ledger()
    ledger.charge("eval", 5.0)
    ledger.charge("collection", 7.0)
    assert (ledger.spent, ledger.spent_unshared) == (7.0, 7.0)


def test_a_checkpoint_keeps_both_books():
    ledger, resumed = Ledger(), Ledger()
    ledger.charge("collection", 7.0)
    ledger.unshared["update"] += 3.0
    resumed.load_state_dict(ledger.state_dict())
    assert (resumed.flops, resumed.unshared) == (ledger.flops, ledger.unshared)


def test_a_prefilled_prompt_is_charged_what_torch_counts():
    """Whole attention matrices, as the eager kernel computes them; causality needs a little more than half of those."""
    length = 24
    NANO.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = NANO.head.hidden(input_ids=torch.arange(length)[None] + 20, use_cache=False)
        NANO.head.logits(hidden[:, -1])
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    rotary = sum(flops for name, flops in by_module.items() if name.endswith("rotary_emb"))
    whole = RolloutCounts(prefills=1, prompt_tokens=length, prompt_attended=length * length)
    ledger = Ledger()
    ledger.charge_rollout("rollout", NANO, whole)
    assert ledger.flops["rollout"] == counter.get_total_flops() - rotary


def test_an_update_is_charged_what_torch_counts():
    """Forward and backward of a prompt and its continuation; torch fills the whole attention matrix, and says so."""
    context, length = 9, 7
    NANO.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        hidden = NANO.head.hidden(input_ids=torch.arange(context + length)[None] + 20, use_cache=False)
        NANO.head.logits(hidden[:, context - 1 : -1]).sum().backward()
    NANO.model.zero_grad(set_to_none=True)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    rotary = sum(flops for name, flops in by_module.items() if name.endswith("rotary_emb"))
    counted = counter.get_total_flops() - rotary
    counts = UpdateCounts()
    counts.add([Row(0, context, length)], shared_prompt=True)
    ledger = Ledger()
    ledger.charge_update("update", NANO, counts)
    whole = (1 + BACKWARD_COST) * forward_flops(NANO, context + length, context + length, length)
    assert whole == counted
    assert 0.9 * counted < ledger.flops["update"] < counted  # FLOPs that causality lets a kernel skip are not counted
