"""One decoding pass, several ways: CPU milliseconds a pass by number of rows.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/passes.py

The 5M model, groups of 8 behind prompts of 96 tokens. *Fused* and *shared* are this library's (``fused`` and
``shared`` of ``rollout.in_process``), *copied* gives every row a cache of its own, *static* is transformers' cache of a
fixed length, *compiled* the same under ``torch.compile``, whose first pass is printed apart: each number of rows is
compiled once (a range of them at a time, if marked), and rows leave all the time. Ways take turns; medians.

Left out: drawing tokens, and CUDA graphs, which need a GPU.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from entries import write_model
from transformers import DynamicCache, StaticCache

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.rollout.in_process.fused import fused_layers
from heliostat.rollout.in_process.rows import Rows
from heliostat.rollout.in_process.shared import SharedRows, attending

RESULTS = Path(__file__).resolve().parent / "results" / "passes.json"
PROMPT, GROUP, NUM_PASSES = 96, 8, 32
Feed = Callable[[torch.Tensor], object]


def ways(loaded: LoadedModel, num_rows: int) -> dict[str, Feed]:
    """Name -> what feeds every row one token, each with a cache of its own behind the same prompts."""
    prompts = torch.randint(10, 200, (num_rows // GROUP, PROMPT), generator=torch.Generator().manual_seed(0))
    start = torch.zeros(len(prompts), dtype=torch.long)
    layers = fused_layers(loaded, reorders=True)
    assert layers is not None

    def prefilled() -> DynamicCache:
        cache = DynamicCache(config=loaded.model.config)
        loaded.head.hidden(input_ids=prompts, past_key_values=cache, use_cache=True)
        return cache

    fused, shared = (SharedRows(prefilled(), start, GROUP, NUM_PASSES + 2) for _ in range(2))
    copied = Rows(prefilled(), start, GROUP, NUM_PASSES + 2)
    return {
        "fused": lambda token: layers.hidden(fused, token),
        "shared": lambda token: shared.hidden(loaded, token),
        "copied": lambda token: copied.hidden(loaded, token),
        "static": static(loaded, prompts.repeat_interleave(GROUP, dim=0), compiled=False),
        "compiled": static(loaded, prompts.repeat_interleave(GROUP, dim=0), compiled=True),
    }


def static(loaded: LoadedModel, prompts: torch.Tensor, compiled: bool) -> Feed:
    """Transformers' own cache of a fixed length, with or without the compiler."""
    length = PROMPT + NUM_PASSES + 2
    cache = StaticCache(config=loaded.model.config, max_cache_len=length)
    loaded.head.hidden(input_ids=prompts, past_key_values=cache, use_cache=True)
    forward = torch.compile(loaded.head.hidden) if compiled else loaded.head.hidden
    position = PROMPT

    def feed(token: torch.Tensor) -> object:
        nonlocal position
        mask = torch.zeros(len(token), 1, 1, length).masked_fill(torch.arange(length) > position, -torch.inf)
        where = torch.full((len(token), 1), position)
        position += 1
        return forward(input_ids=token, attention_mask=mask, position_ids=where, past_key_values=cache, use_cache=True)

    return feed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(ModelSection(path=str(write_model("5M", Path(folder))), dtype="float32"), seed=0)
    found: dict[str, dict[str, float]] = {}
    for num_rows in (8, 24, 64):
        with torch.no_grad(), attending(loaded.model):
            found[str(num_rows)] = measure(ways(loaded, num_rows), num_rows)
        print(num_rows, {name: round(value, 2) for name, value in found[str(num_rows)].items()}, flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def measure(feeds: dict[str, Feed], num_rows: int) -> dict[str, float]:
    """Milliseconds of every way without its first pass, and the compiler's first."""
    token = torch.full((num_rows, 1), 11)
    taken: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(NUM_PASSES + 1):
        for name, feed in feeds.items():
            began = time.process_time()
            feed(token)
            taken[name].append(1e3 * (time.process_time() - began))
    medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
    return medians | {"compiled, first": taken["compiled"][0]}


if __name__ == "__main__":
    main()
