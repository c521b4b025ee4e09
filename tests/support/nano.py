"""A model small enough to run in milliseconds, and prompts for it."""

import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.types import Problem, Prompt

NANO = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}


def make_nano(seed: int = 0, scale: float = 8.0, eos_bias: float = 5.0, **shape: int) -> LoadedModel:
    """A 30,000-parameter model with scaled-up weights and a taste for stopping: uneven odds, ragged lengths.

    The taste is a hook, which keeps updates in one thread; a model with ``eos_bias=0`` has none.
    """
    loaded = load_model(ModelSection(path="tiny", settings={**NANO, **shape}), seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
    loaded.model.eval()
    if not eos_bias:
        return loaded
    bias = torch.zeros(loaded.model.config.vocab_size).index_fill(0, torch.tensor(loaded.eos_id), eos_bias)
    loaded.head.projection.register_forward_hook(lambda module, args, output: output + bias)
    return loaded


def make_prompts(loaded: LoadedModel, num: int) -> list[Prompt]:
    """Prompts of different lengths."""
    texts = ["1 + 2 =", "10 + 25 - 3 =", "7 =", "123 + 456 - 789 + 12 =", "5 - 4 ="]
    problems = [Problem(f"p{i}", "sums", texts[i % len(texts)] + " 9" * (i // len(texts))) for i in range(num)]
    return [encode_problem(loaded, problem) for problem in problems]
