"""Time decoding by one thread, by torch's threads in every operation, by workers with rows each, and as a run chooses.

    python benchmarks/workers/rollout.py                    # all models; on an idle machine
    python benchmarks/workers/rollout.py --busy 1           # beside one process that never rests
    python benchmarks/workers/rollout.py --models 5M --rows 64

Groups of 8 with prompts of 16 tokens, decoded for 24 tokens without an end. The ways take turns within a
round; their tokens are compared. Wall seconds, medians of the rounds, and of the rounds' ratios to one thread the least
and the greatest.

Left out: the update (``update``), prompts that end at different times, and more threads than cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time

import torch
from update import MODELS, busy, spread

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.types import Problem, Prompt

GROUP, PROMPT, NUM_TOKENS = 8, 16, 24


def request_of(num_rows: int) -> SampleRequest:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (num_rows // GROUP, PROMPT), generator=generator).tolist()
    prompts = [Prompt(Problem(str(index), "t", ""), tuple(each)) for index, each in enumerate(ids)]
    return SampleRequest(prompts, GROUP, SamplingSettings(), seed=1, policy_step=0)


def timed(engine: TorchEngine, num_threads: int, num_rows: int) -> tuple[float, list[tuple[int, ...]]]:
    """Return wall seconds, and the tokens."""
    torch.set_num_threads(num_threads)
    began = time.perf_counter()
    groups = engine.sample(request_of(num_rows))
    taken = time.perf_counter() - began
    return taken, [tuple(completion.token_ids) for group in groups for completion in group.completions]


def measure(name: str, loaded: LoadedModel, num_rows: int, args: argparse.Namespace) -> dict[str, object]:
    """Time all rounds of one model and number of rows."""
    limits = DecodeLimits(NUM_TOKENS)
    alone, shared = TorchEngine(loaded, limits), TorchEngine(loaded, limits, num_workers=args.cores)
    ways = {"one thread": (alone, 1), "torch's threads": (alone, args.cores), "workers": (shared, args.cores)}
    ways["as a run chooses"] = (TorchEngine(loaded, limits, num_workers=0), args.cores)
    rounds: list[dict[str, float]] = []
    with busy(args.busy):
        for number in range(args.rounds + 1):
            walls, tokens = {}, {}
            for way, (engine, num_threads) in ways.items():
                walls[way], tokens[way] = timed(engine, num_threads, num_rows)
            if number:  # the first warms up
                rounds.append(walls)
    return {
        "model": name,
        "dtype": args.dtype,
        "rows": num_rows,
        "busy": args.busy,
        "wall_s": {way: round(statistics.median(walls[way] for walls in rounds), 3) for way in ways},
        "times one thread": {way: spread([walls["one thread"] / walls[way] for walls in rounds]) for way in ways},
        "same tokens": sum(map(tuple.__eq__, tokens["one thread"], tokens["workers"])) / num_rows,
    }


def main() -> None:
    """Measure each model, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="*", default=[16, 32, 64, 256])
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name in args.models:
        loaded = load_model(ModelSection(path="tiny", dtype=args.dtype, settings=MODELS[name][0]), 0)
        loaded.model.eval()  # type: ignore[no-untyped-call]
        endless = dataclasses.replace(loaded, eos_ids=frozenset())
        for num_rows in args.rows:
            print(json.dumps(measure(name, endless, num_rows, args)), flush=True)


if __name__ == "__main__":
    main()
