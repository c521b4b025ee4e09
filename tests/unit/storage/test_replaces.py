"""Everything that replaces something, killed: the old state or the new one is found, and the next try succeeds.

A few events of each here; ``make torture`` kills at every one.
"""

import pytest

from tests.support.kills import count_events
from tests.support.replaces import REPLACES, torn_bank

NUM_KILLS = 5


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACES)
def test_killed_while_replacing(name, tmp_path):
    one = REPLACES[name]
    (tmp_path / "count").mkdir()
    one.before(tmp_path / "count")
    num = count_events(lambda: one.work(tmp_path / "count"))
    assert num >= 1
    for event in sorted({1 + (num - 1) * part // (NUM_KILLS - 1) for part in range(NUM_KILLS)}):
        assert one.survives(tmp_path / "all", event), event


def test_a_bank_whose_log_was_torn_has_whole_transactions(tmp_path):
    assert torn_bank(tmp_path, 40) == (40, 40)
