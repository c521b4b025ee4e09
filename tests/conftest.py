"""Fixtures that many rooms share: a model small enough to run in milliseconds, and problems for it."""

import faulthandler
import os
import traceback
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.types import Problem, Prompt

torch.set_num_threads(1)

# Continuous integration draws the same examples every time, so that a red run can be run again; elsewhere they vary.
settings.register_profile("reproducible", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("reproducible")

NANO = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}


def make_nano(seed: int = 0, scale: float = 8.0, eos_bias: float = 5.0, **shape: int) -> LoadedModel:
    """A 30,000-parameter model with scaled-up weights and a taste for stopping: uneven odds, ragged lengths."""
    loaded = load_model(ModelSection(path="tiny", settings={**NANO, **shape}), seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
    loaded.model.eval()
    bias = torch.zeros(loaded.model.config.vocab_size).index_fill(0, torch.tensor(loaded.eos_id), eos_bias)
    loaded.head.projection.register_forward_hook(lambda module, args, output: output + bias)
    return loaded


@pytest.fixture
def nano() -> LoadedModel:
    return make_nano()


def make_prompts(loaded: LoadedModel, num: int) -> list[Prompt]:
    """Prompts of different lengths."""
    texts = ["1 + 2 =", "10 + 25 - 3 =", "7 =", "123 + 456 - 789 + 12 =", "5 - 4 ="]
    problems = [Problem(f"p{i}", "sums", texts[i % len(texts)] + " 9" * (i // len(texts))) for i in range(num)]
    return [encode_problem(loaded, problem) for problem in problems]


HANGS_AFTER = 200
"""Seconds after which a forked child says where it hangs and ends: less than a test may take."""


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process and return its id; the child never comes back here."""
    child = os.fork()
    if child == 0:
        code = 1
        torch.set_num_threads(1)  # threads do not survive a fork, and OpenMP would wait for its own for ever
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child
