"""The checks of shapes, how hypothesis draws its examples, and the smallest model."""

import os

import pytest
import torch
from hypothesis import settings

from tests.support import shapes
from tests.support.slow import pytest_terminal_summary

shapes.install()  # before the first import of heliostat

from tests.support.nano import make_nano  # noqa: E402

__all__ = ["pytest_terminal_summary"]

torch.set_num_threads(1)

# Continuous integration draws the same examples every time, so that a red run can be run again; elsewhere they vary.
settings.register_profile("reproducible", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def one_thread():
    """Begin every test with one thread, whatever a run within an earlier test has set: sums depend on the number."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def nano():
    return make_nano()


@pytest.fixture
def wrong_shapes():
    """Leave shapes unchecked in a test that passes wrong ones, so that the function's own error is what is raised."""
    with shapes.unchecked():
        yield
