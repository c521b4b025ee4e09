"""How the cost of a step grows with group size, prompt and answer length, with shared prompts and without.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/curves.py --axis group_size      # or prompt, answer; --table alone

CPU seconds of sampling and of one forward and backward pass on the 5M model, one axis varied at a time, answers of
exactly the stated length; the exponent is the slope of the logarithms. One timed run a point, after one that warms up.

Left out: verification, and TRL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from entries import write_model

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.logprobs.packing import microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Problem, Prompt, TrainingGroup

RESULTS = Path(__file__).resolve().parent / "results" / "curves.jsonl"
BASE = {"group_size": 8, "prompt": 96, "answer": 24}
AXES = {"group_size": (2, 4, 8, 16), "prompt": (48, 96, 192, 384), "answer": (12, 24, 48, 96)}
NUM_PROMPTS = 2


def point(loaded: LoadedModel, group_size: int, prompt: int, answer: int, shared: bool) -> dict[str, float]:
    """CPU seconds of one rollout and one gradient."""
    ids = np.random.default_rng(0).integers(10, len(loaded.tokenizer), size=(NUM_PROMPTS, prompt))
    prompts = [Prompt(Problem(str(i), "t", "?"), tuple(map(int, row))) for i, row in enumerate(ids)]
    engine = TorchEngine(loaded, DecodeLimits(answer), shared_prompt=shared)
    policy = Policy(loaded, 1.0, shared_prompt=shared)

    def sample() -> list[TrainingGroup]:
        groups = engine.sample(SampleRequest(prompts, group_size, SamplingSettings(), seed=1, policy_step=0))
        return [TrainingGroup(group, torch.ones(group_size)) for group in groups]

    rows = rows_of(sample())
    counts = engine.take_counts()

    def gradient() -> None:
        for part in microbatches(rows, 8192, policy.padded_tokens):
            policy.log_probs(part).sum().backward()

    trained = sum(policy.padded_tokens(shapes) for shapes in _shapes(rows, policy))
    return {
        "rollout_s": _cpu_seconds(sample),
        "update_s": _cpu_seconds(gradient),
        "sampled_tokens": sum(row.num_tokens for row in rows),
        "prompt_tokens": counts.prompt_tokens,
        "decoded_rows": counts.decoded_rows,
        "trained_tokens": trained,
    }


def _shapes(rows: list, policy: Policy) -> list:  # type: ignore[type-arg]
    from heliostat.train.logprobs.packing import GroupShape, by_group

    parts = microbatches(rows, 8192, policy.padded_tokens)
    return [[GroupShape.of(group) for group in by_group(part)] for part in parts]


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def table(points: list[dict[str, float]]) -> str:
    """First and last point of every axis, and the fitted exponents."""
    lines = [
        "| axis | prompts | rollout CPU s | exponent | update CPU s | exponent | tokens trained on | exponent |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for axis in AXES:
        for shared in (True, False):
            mine = [x for x in points if x["axis"] == axis and x["shared"] == shared]
            if len(mine) < 2:
                continue
            cells = []
            for key, style in (("rollout_s", ".2f"), ("update_s", ".2f"), ("trained_tokens", ",.0f")):
                slope = np.polyfit(np.log([x[axis] for x in mine]), np.log([x[key] for x in mine]), 1)[0]
                cells += [f"{mine[0][key]:{style}} to {mine[-1][key]:{style}}", f"{slope:.2f}"]
            label = f"{axis.replace('_', ' ')}, {mine[0][axis]} to {mine[-1][axis]}"
            lines.append(f"| {label} | {'shared' if shared else 'copied'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), nargs="*", default=list(AXES))
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    stored = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not args.table:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_model(ModelSection(path=str(write_model("5M", Path(folder))), dtype="float32"), 0)
        loaded = dataclasses.replace(loaded, eos_ids=frozenset())  # every answer has its full length
        loaded.model.eval()  # type: ignore[no-untyped-call]
        for axis in args.axis:
            stored = [x for x in stored if x["axis"] != axis]
            for value in AXES[axis]:
                for shared in (True, False):
                    here = {**BASE, axis: value}
                    stored.append({"axis": axis, **here, "shared": shared, **point(loaded, **here, shared=shared)})
            RESULTS.write_text("".join(json.dumps(x) + "\n" for x in stored))
    print(table(stored))


if __name__ == "__main__":
    main()
