"""Sampling with low-rank adapters, against the same model without.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/adapters.py --models 5M 25M smollm2-135m --dtypes float32 bfloat16

Groups of 8 with short prompts, decoded for 32 tokens without an end. The contenders take turns; CPU seconds of a batch,
prefill and copies of weights included, medians of five.

Left out: updates.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from decoding import NUM_TOKENS, NUM_TRIES, request_of
from entries import write_model

from heliostat.config import LoraSection, ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.lora import add_adapters
from heliostat.rollout import DecodeLimits, TorchEngine

ROWS = (8, 64)


def loaded_model(name: str, dtype: Any, rank: int) -> LoadedModel:
    """A model of the race that never ends a completion, with adapters that change its outputs if ``rank`` is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(ModelSection(path=str(write_model(name, Path(folder))), dtype=dtype), 0)
    if rank:
        add_adapters(loaded.model, LoraSection(rank=rank), 0)
        for parameter_name, parameter in loaded.model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.01)
    loaded.model.eval()  # type: ignore[no-untyped-call]
    return dataclasses.replace(loaded, eos_ids=frozenset())


def seconds(engines: dict[str, TorchEngine], num_rows: int) -> dict[str, float]:
    """CPU seconds of a batch by contender."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(NUM_TRIES + 1):
        for name, engine in engines.items():
            began = time.process_time()
            engine.sample(request_of(num_rows))
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["5M", "25M", "smollm2-135m"])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = DecodeLimits(NUM_TOKENS)
    print(
        "| model | dtype | rows | without | adapters | x | by the model's own modules | x |\n|---|---|--:|" + "--:|" * 5
    )
    for name in args.models:
        for dtype in args.dtypes:
            whole, adapted = loaded_model(name, dtype, 0), loaded_model(name, dtype, args.rank)
            engines = {
                "without": TorchEngine(whole, limits),
                "adapters": TorchEngine(adapted, limits),
                "modules": TorchEngine(adapted, limits, fused_layers=False, reorder_weights=False),
            }
            for num_rows in ROWS:
                taken = seconds(engines, num_rows)
                base = taken["without"]
                cells = [
                    f"{base:.2f}",
                    *(f"{taken[key]:.2f} | {taken[key] / base:.2f}" for key in ("adapters", "modules")),
                ]
                print(f"| {name} | {dtype} | {num_rows} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
