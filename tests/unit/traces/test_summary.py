from heliostat.traces import Attempts, Bank, summarise
from heliostat.traces.summary import Bin, histogram
from tests.support.traces import make_trace


def test_counts_add_up(tmp_path):
    with Bank.open(tmp_path / "traces.bank") as bank:
        bank.append(
            [make_trace(n, problem=n % 4, success=n % 2 == 0) for n in range(20)],
            [
                Attempts("c", "sums/0", 0, 32, 1, 5.0),
                Attempts("c", "sums/0", 1, 32, 1, 5.0),
                Attempts("c", "sums/1", 0, 32, 0, 5.0),
            ],
        )
        summary = summarise(bank)
    assert (summary.num_traces, summary.num_problems, summary.num_successes) == (20, 4, 10)
    assert summary.tasks == (("sums", 4, 20, 10),)
    assert summary.samplers == (("first", 20, 10, "exact", False),)
    assert (summary.num_tried, summary.num_unsolved, summary.num_attempts, summary.flops) == (2, 1, 96, 15.0)
    assert summary.attempts == (Bin(32, 1),)


def test_bins_double_and_hold_every_problem():
    assert histogram([]) == ()
    assert histogram([1, 1.5, 2, 3, 9000])[:3] == (Bin(1, 1), Bin(2, 2), Bin(4, 1))
    assert sum(one.num_problems for one in histogram([1, 1.5, 2, 3, 9000])) == 5
    assert histogram([9000])[-1].num_problems == 1
