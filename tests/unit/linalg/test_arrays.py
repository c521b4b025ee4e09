import warnings

import numpy as np
import pandas
import pytest
import torch

from heliostat.linalg import BlockExchangeable, LowRank, SpanOf, SparsityPattern, inverse_decomposition
from heliostat.linalg.arrays import as_tensor
from heliostat.theory import pmd_mean


@pytest.fixture
def always_warned():
    """Every warning of torch is an error; torch gives this one only once in a process by itself."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(before)


def read_only(values):
    array = np.array(values)
    array.setflags(write=False)
    return array


def test_read_only_memory_is_copied_and_other_memory_shared(always_warned):
    fixed, free = read_only([1.0, 2.0]), np.array([1.0, 2.0])
    as_tensor(fixed)[0] = 5.0
    as_tensor(free)[0] = 5.0
    assert (fixed[0], free[0]) == (1.0, 5.0)
    for values in ([1, 2], (1.0, 2.0), fixed, fixed[::-1][::-1], pandas.Series([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        torch.testing.assert_close(as_tensor(values), torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert as_tensor(read_only([True]), torch.bool).dtype == torch.bool


def test_frames_of_pandas_give_no_warning(always_warned):
    covariance = pandas.DataFrame(np.random.default_rng(0).normal(size=(50, 4))).cov()
    assert not covariance.to_numpy().flags.writeable
    off = pandas.DataFrame([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    free = read_only(np.eye(2, dtype=bool))
    for subspace in (
        SparsityPattern(4, [(0, 1)]),
        SpanOf([off]),
        SpanOf([LowRank(read_only(np.eye(4)[:, :2]), read_only([[0.0, 1.0], [1.0, 0.0]]))]),
        BlockExchangeable([2, 2], free),
    ):
        assert inverse_decomposition(covariance, subspace).certificate.residual < 1e-9
    assert pmd_mean(read_only([0.5, 0.5]), pandas.Series([1.0, 0.0]), 0.5).log_ratio[0] > 0
