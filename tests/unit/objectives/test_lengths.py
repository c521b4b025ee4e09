import pytest
import torch

from heliostat.objectives.lengths import denominator, sequence_weight

LENGTHS = torch.tensor([3, 0, 5])


@pytest.mark.parametrize(("mode", "expected"), [("none", 3.0), ("sequence", 3.0), ("constant", 21.0), ("token", 8.0)])
def test_denominator_by_hand(mode, expected):
    assert denominator(mode, 3, 8, 7.0) == expected


def test_only_the_sequence_mean_divides_by_length_and_an_empty_sequence_divides_by_nothing():
    assert sequence_weight("sequence", LENGTHS, torch.float64).tolist() == [1 / 3, 1.0, 1 / 5]
    for mode in ("none", "constant", "token"):
        assert sequence_weight(mode, LENGTHS, torch.float64).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("mode", ["none", "sequence", "constant", "token"])
def test_a_step_without_sequences_has_no_denominator(mode):
    with pytest.raises(ValueError, match="got 0 sequences with 0 completion tokens"):
        denominator(mode, 0, 0, 7.0)


def test_a_token_mean_over_empty_sequences_is_refused():
    with pytest.raises(ValueError, match="got 2 sequences with 0 completion tokens"):
        denominator("token", 2, 0, 7.0)
    assert denominator("none", 2, 0, 7.0) == 2.0
