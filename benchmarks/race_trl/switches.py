"""What each speed-up buys: CPU seconds of a step's two halves with its switch on and off.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/switches.py --model 5M --workload prefix

Sampling with ``rollout.fused_layers`` and ``rollout.shared_prompt`` on and off, and decoding's floor: weights and cache
read once a pass at the speed of a copy, plus the products at their ceiling. What decoding took is a whole rollout less
one of a single token. One gradient with ``train.shared_prompt`` on and off, its useful
operations (the ledger's count, padding left out) per second against a matrix product timed on the spot. Best of three.

Left out: wall seconds, several threads, and TRL.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from entries import MAX_ANSWER_TOKENS, Entry, write_model, write_prompts

from heliostat.config import ModelSection
from heliostat.models import BACKWARD_COST, LoadedModel, encode_problem, forward_flops, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.accounting.machine_peak import MachinePeak
from heliostat.train.accounting.profiler import decode_floor
from heliostat.train.logprobs.packing import microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import Group, Problem, Prompt, TrainingGroup

RESULTS = Path(__file__).resolve().parent / "results" / "switches.jsonl"
SWITCHES: dict[str, dict[str, Any]] = {
    "copied": {"shared_prompt": False, "fused_layers": False},
    "shared": {"shared_prompt": True, "fused_layers": False},
    "fused": {"shared_prompt": True, "fused_layers": True},
}


def measure(entry: Entry, loaded: LoadedModel, prompts: list[Prompt]) -> dict[str, float]:
    """CPU seconds by half and switch."""
    found: dict[str, float] = {}
    ceilings = _ceilings()
    for name, switches in SWITCHES.items():
        whole, begun = (
            _cpu_seconds(partial(_sample, engine, prompts, entry))
            for engine in (TorchEngine(loaded, DecodeLimits(num), **switches) for num in (MAX_ANSWER_TOKENS, 1))
        )
        found[f"rollout_{name}_s"], found[f"decode_{name}_s"] = whole, whole - begun
    engine = TorchEngine(loaded, DecodeLimits(MAX_ANSWER_TOKENS))
    groups = _sample(engine, prompts, entry)
    found["decode_floor_s"] = decode_floor(loaded, engine.take_counts(), ceilings)
    rows = rows_of([TrainingGroup(group, torch.ones(entry.group_size)) for group in groups])
    for shared in (True, False):
        policy = Policy(loaded, 1.0, shared_prompt=shared)
        parts = microbatches(rows, 8192, policy.padded_tokens)

        def gradient(policy: Policy = policy, parts: list = parts) -> None:  # type: ignore[type-arg]
            for part in parts:
                policy.log_probs(part).sum().backward()

        seconds = found[f"update_{'shared' if shared else 'plain'}_s"] = _cpu_seconds(gradient)
        counts = UpdateCounts()
        for part in parts:
            counts.add(part, policy.shared_prompt)
        tokens = counts.prompt_tokens + counts.completion_tokens
        attended = (counts.prompt_attended + counts.completion_attended) / tokens
        useful = (1 + BACKWARD_COST) * forward_flops(loaded, tokens, attended, counts.completion_tokens)
        found[f"update_{'shared' if shared else 'plain'}_flops_per_s"] = useful / seconds
    found["ceiling_flops_per_s"], found["ceiling_bytes_per_s"] = ceilings.flops_per_s, ceilings.bytes_per_s
    return found


def _sample(engine: TorchEngine, prompts: list[Prompt], entry: Entry) -> list[Group]:
    return engine.sample(SampleRequest(prompts, entry.group_size, SamplingSettings(), seed=1, policy_step=0))


def _ceilings(size: int = 1024, copy_bytes: int = 2**28) -> MachinePeak:
    """As ``heliostat.train.accounting.machine_peak``, in CPU seconds: the machine may be shared."""
    left, right = torch.ones(2, size, size)
    source = torch.zeros(copy_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    product_s = _cpu_seconds(lambda: torch.mm(left, right), num_tries=7)
    return MachinePeak(
        2 * size**3 / product_s, 2 * copy_bytes / _cpu_seconds(lambda: target.copy_(source), num_tries=7)
    )


def _cpu_seconds(work: Callable[[], object], num_tries: int = 3) -> float:
    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return min(once() for _ in range(num_tries))


def table(points: list[dict[str, float]]) -> str:
    """One line a workload."""
    lines = [
        "| model | prompts | rollout: copied | shared | fused | decoding x floor | update: plain | shared | GFLOP/s "
        "| of ceiling |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for x in points:
        cells = [f"{x[key]:.2f}" for key in ("rollout_copied_s", "rollout_shared_s", "rollout_fused_s")]
        cells.append(f"{x['decode_fused_s'] / x['decode_floor_s']:.1f}")
        cells += [f"{x[key]:.2f}" for key in ("update_plain_s", "update_shared_s")]
        rate = x["update_shared_flops_per_s"]
        share = f"{rate / x['ceiling_flops_per_s']:.0%}"
        lines.append(f"| {x['model']} | {x['workload']} | {' | '.join(cells)} | {rate / 1e9:.0f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="5M")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    stored = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not args.table:
        torch.set_num_threads(1)
        entry = Entry(args.model, args.workload)
        with tempfile.TemporaryDirectory() as folder:
            path = write_model(entry.model, Path(folder))
            loaded = load_model(ModelSection(path=str(path), dtype="float32"), 0)
            texts = write_prompts(entry, path, Path(folder)).read_text().splitlines()[: entry.num_prompts]
        loaded.model.eval()  # type: ignore[no-untyped-call]
        problems = [Problem(str(i), "t", json.loads(text)["prompt"]) for i, text in enumerate(texts)]
        prompts = [encode_problem(loaded, problem, chat=False) for problem in problems]
        stored = [
            x for x in stored if "decode_floor_s" in x and (x["model"], x["workload"]) != (entry.model, entry.workload)
        ]
        stored.append({"model": entry.model, "workload": entry.workload, **measure(entry, loaded, prompts)})
        RESULTS.write_text("".join(json.dumps(x) + "\n" for x in stored))
    print(table(stored))


if __name__ == "__main__":
    main()
