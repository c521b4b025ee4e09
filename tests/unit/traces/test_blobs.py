import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.traces.blobs import digest, pack_floats, pack_ids, unpack_floats, unpack_ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1)))
def test_ids_come_back_as_they_were(ids):
    assert unpack_ids(pack_ids(ids)) == tuple(ids)


def test_small_ids_take_two_bytes():
    assert len(pack_ids([1, 65535])) == 1 + 2 * 2
    assert len(pack_ids([1, 65536])) == 1 + 2 * 4


def test_what_is_not_ids_is_refused():
    with pytest.raises(ValueError, match="between 0 and"):
        pack_ids([2**32])
    for blob in (b"", b"\x03ab", pack_ids([7, 8])[:-1]):
        with pytest.raises(ValueError, match="damaged"):
            unpack_ids(blob)


def test_log_probabilities_come_back_bit_for_bit():
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    assert unpack_floats(pack_floats(values)).tobytes() == values.tobytes()
    assert len(unpack_floats(pack_floats(()))) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=3), st.lists(st.binary(max_size=4), max_size=3))
def test_only_equal_parts_have_equal_digests(one, other):
    """Among them parts whose bytes run together the same way, like (b"a", b"b") and (b"ab",)."""
    assert (digest(*one) == digest(*other)) == (one == other)
