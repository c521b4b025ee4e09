"""What real runs on one and two ranks move, hold and take, beside what ``heliostat.scaling`` says they should.

    python benchmarks/scaling/measure.py [--out benchmarks/scaling/results/measured.json]

Every case is ``heliostat train`` itself, started by torchrun over gloo where it has two ranks, one thread each. The
first step warms up, the second is counted (which slows it down), the others are timed. Bytes and operations are counts
and must agree; seconds are predicted from three ceilings measured beside the run (a product, a copy, an all-reduce)
and show how far a model of ceilings is from a small model on a CPU.

Left out: GPUs, several nodes, the vLLM engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from counting import Collectives, Kept, stored
from torch.utils.flop_counter import FlopCounterMode

from heliostat.config import Recipe, load_recipe
from heliostat.models import load_model
from heliostat.scaling import (
    GpuLayout,
    Hardware,
    job_of,
    sampling_flops,
    shape_of,
    step_seconds,
    step_traffic,
    training_flops,
    training_memory,
)
from heliostat.train import run_recipe
from heliostat.train.accounting.machine_peak import measure_machine_peak
from heliostat.train.trainer import Trainer

RECIPE = """
[run]
num_threads = 1

[model]
path = "tiny"
settings = {{hidden_size = 256, intermediate_size = 704, num_layers = 6, num_heads = 8, num_kv_heads = 4}}

[task]
name = "file"
path = "{folder}/sums.jsonl"
answer_column = "answer"
verifiers = [{{name = "digits:score"}}]
shaped = true
num_train = 80
num_heldout = 20

[rollout]
prompts_per_step = 16
group_size = 8
max_new_tokens = 24

[train]
num_steps = 6
updates_per_step = 2
tokens_per_microbatch = 600
drop_zero_signal = false

[eval]
every = 0
final_samples = 1

[guard]
mode = "off"
"""
CASES: dict[str, tuple[int, dict[str, object]]] = {
    "one rank": (1, {}),
    "one rank, recompute": (1, {"train.gradient_checkpointing": True}),
    "two ranks, replicated": (2, {"distributed.placement": "replicated"}),
    "two ranks, sharded": (2, {"distributed.placement": "sharded"}),
    "two ranks, sharded, bfloat16": (
        2,
        {"distributed.placement": "sharded", "distributed.compute_dtype": "bfloat16"},
    ),
}
COUNTED = 2
KINDS_SHOWN = ("all-gather", "reduce-scatter", "all-reduce", "exchange")
PROMPT_TOKENS = 6
"""Of every prompt of the task, as the tiny model's tokenizer cuts it."""


def work(folder: Path, overrides: dict[str, object]) -> None:
    """One rank of one case."""
    rows: list[dict] = []
    plain = Trainer.step

    def watched(self: Trainer, step: int) -> dict[str, float]:
        model, optimizer = self.context.bundle.loaded.model, self.updater.safe_step.optimizer
        if step != COUNTED:
            began = time.perf_counter()
            values = plain(self, step)
            phases = dict(self.context.ledger.last_seconds)
            rows.append({"step": step, "seconds": time.perf_counter() - began, "phases": phases})
            return values
        kept, forward = Kept(model), self.updater.policy.log_probs

        def log_probs(rows):
            if not torch.is_grad_enabled():
                return forward(rows)
            with kept.forward():
                return forward(rows)

        collectives, flops = Collectives(), FlopCounterMode(display=False)
        with patch.object(self.updater.policy, "log_probs", log_probs), flops, collectives:
            values = plain(self, step)
        rows.append(
            {
                "step": step,
                "bytes": dict(collectives.bytes),
                "calls": dict(collectives.calls),
                "flops": flops.get_total_flops(),
                "stored": stored(model, optimizer),
                "kept": kept.most,
                "values": values,
            }
        )
        return values

    recipe = load_recipe(str(folder / "recipe.toml"), overrides)
    with patch.object(Trainer, "step", watched):
        result = run_recipe(recipe, folder / "run", "measure")
    assert result.status == "finished", result.reason
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank{rank}.json").write_text(json.dumps(rows))


def load_recipe_text(overrides: dict[str, object]) -> Recipe:
    """The recipe with a case's settings; its paths lead nowhere."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(RECIPE.format(folder="."))
        file.flush()
        return load_recipe(file.name, overrides)


def measure(num_ranks: int, overrides: dict[str, object]) -> list[list[dict]]:
    """What each rank of a case saw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
        sums = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
        (folder / "digits.py").write_text(
            "def score(completions, **columns):\n"
            "    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]\n"
        )
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command = [sys.executable, *(launch if num_ranks > 1 else []), __file__, "--work", name, json.dumps(overrides)]
        path = os.pathsep.join([name, *filter(None, sys.path)])
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
        return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]


def all_reduce_rate(num_bytes: int = 2**25) -> float:
    """Bytes per second and rank that two processes move in an all-reduce over gloo, here and now: the best of five."""
    import torch.multiprocessing as mp

    with tempfile.NamedTemporaryFile() as meeting, tempfile.NamedTemporaryFile("r") as result:
        mp.spawn(_reduce, (f"file://{meeting.name}.store", num_bytes, result.name), nprocs=2)
        return float(result.read())


def _reduce(rank: int, store: str, num_bytes: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    values, best = torch.zeros(num_bytes // 4), float("inf")
    for _ in range(5):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        best = min(best, time.perf_counter() - began)
    if rank == 0:
        Path(path).write_text(str(num_bytes / best))  # on two ranks each sends as much as the tensor has
    dist.destroy_process_group()


def ceilings() -> dict[str, float]:
    """What this machine does at best, one thread and two processes."""
    torch.set_num_threads(1)
    measured = measure_machine_peak(torch.device("cpu"), torch.float32)
    return {
        "flops_per_s": measured.flops_per_s,
        "bytes_per_s": measured.bytes_per_s,
        "link_bytes_per_s": all_reduce_rate(),
    }


def predicted(ranks: list[list[dict]], num_ranks: int, overrides: dict[str, object], best: dict[str, float]) -> dict:
    """The model's numbers for what a case was: its own mean lengths, and ceilings reached in full."""
    values = next(row for row in ranks[0] if row["step"] == COUNTED)["values"]
    recipe = load_recipe_text(overrides)
    shape = shape_of(load_model(recipe.model, 0).model.config.to_dict(), "measured")
    bfloat16 = recipe.distributed.compute_dtype == "bfloat16"
    job = job_of(recipe, PROMPT_TOKENS, values["length/mean"])
    if not bfloat16:  # float32 anchors come from the sampler
        job = dataclasses.replace(job, scored_forwards=0.0)
    layout = GpuLayout(num_ranks, sharded=recipe.distributed.placement == "sharded")
    traffic = step_traffic(shape, job, layout, "float32", "bfloat16" if bfloat16 else None)
    held = training_memory(shape, job, layout, "float32", "bfloat16" if bfloat16 else None)
    machine = Hardware(
        "here", 1, 1e12, best["flops_per_s"], best["bytes_per_s"], best["link_bytes_per_s"], best["link_bytes_per_s"],
        compute_share=1.0, memory_share=1.0, link_share=1.0,
    )  # fmt: skip
    seconds = step_seconds(shape, job, layout, machine, "float32", "bfloat16" if bfloat16 else None)
    return {
        "all-gather bytes": traffic.sampling_all_gather + traffic.training_all_gather,
        "reduce-scatter bytes": traffic.reduce_scatter,
        "all-reduce bytes": traffic.all_reduce,
        "exchange bytes": traffic.object_all_gather,
        "weight bytes": held.weights,
        "gradient bytes": held.gradients,
        "optimizer bytes": held.optimizer,
        "activation bytes": held.activations,
        "operations": (training_flops(shape, job, num_ranks) + sampling_flops(shape, job)) / num_ranks,
        "rollout s": seconds.sampling + seconds.sync,
        "update s": seconds.training,
    }


def seen(ranks: list[list[dict]]) -> dict:
    """The same quantities of the busiest rank, and median seconds of the timed steps."""
    counted = [next(row for row in rows if row["step"] == COUNTED) for rows in ranks]
    timed = [row["phases"] for rows in ranks for row in rows if row["step"] > COUNTED]
    return {
        **{f"{kind} bytes": max(row["bytes"].get(kind, 0) for row in counted) for kind in KINDS_SHOWN},
        "weight bytes": max(row["stored"]["weights"] for row in counted),
        "gradient bytes": max(row["stored"]["gradients"] for row in counted),
        "optimizer bytes": max(row["stored"]["optimizer"] for row in counted),
        "activation bytes": max(row["kept"] for row in counted),
        "operations": max(row["flops"] for row in counted),
        "rollout s": statistics.median(phase["rollout"] for phase in timed),
        "update s": statistics.median(phase["update"] for phase in timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measured.json")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", nargs=2, metavar=("DIR", "OVERRIDES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), json.loads(args.work[1]))
        return
    best = ceilings()
    cases = {}
    for case in args.cases:
        num_ranks, overrides = CASES[case]
        ranks = measure(num_ranks, overrides)
        real, model = seen(ranks), predicted(ranks, num_ranks, overrides, best)
        cases[case] = {
            key: {"predicted": model[key], "measured": real[key], "ratio": model[key] / real[key]}
            for key in real
            if real[key]
        }
        for key, row in cases[case].items():
            print(f"{case:32}{key:24}{row['predicted']:>16.6g}{row['measured']:>16.6g}{row['ratio']:>8.3f}", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"torch": torch.__version__, "ceilings": best, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
