"""How hypothesis draws its examples, and the smallest model."""

import os

import pytest
import torch
from hypothesis import settings

from tests.support.forks import in_child
from tests.support.nano import NANO, make_nano, make_prompts

__all__ = ["NANO", "in_child", "make_nano", "make_prompts"]

torch.set_num_threads(1)

# Continuous integration draws the same examples every time, so that a red run can be run again; elsewhere they vary.
settings.register_profile("reproducible", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("reproducible")


@pytest.fixture
def nano():
    return make_nano()
