"""What real runs on one and two ranks move, hold and take, beside what ``heliostat.scaling`` says they should.

    python benchmarks/scaling/measure.py [--out benchmarks/scaling/results/measured.json]

Every case is ``heliostat train`` itself, started by torchrun over gloo where it has two ranks, one thread each. The first
step warms up, the second is counted (which slows it down), the others are timed. Bytes and operations are counts and
must agree; seconds are predicted from three ceilings measured beside the run (a matrix product, a copy, an all-reduce)
and show how far a model of ceilings is from a small model on a CPU.

Left out: GPUs, several nodes, the vLLM engine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from counting import Collectives, Kept, stored
from torch.utils.flop_counter import FlopCounterMode

from heliostat.config import load_recipe
from heliostat.train import run_recipe
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
CASES = {
    "one rank": (1, {}),
    "one rank, recompute": (1, {"train.recompute": "true"}),
    "two ranks, replicated": (2, {"distributed.placement": "replicated"}),
    "two ranks, sharded": (2, {"distributed.placement": "sharded"}),
    "two ranks, sharded, bfloat16": (
        2,
        {"distributed.placement": "sharded", "distributed.compute_dtype": "bfloat16"},
    ),
}
COUNTED = 2


def work(folder: Path, overrides: dict[str, str]) -> None:
    """One rank of one case."""
    rows: list[dict] = []
    plain = Trainer._step

    def watched(self: Trainer, step: int) -> dict[str, float]:
        model, optimizer = self.bench.loaded.model, self.updater.guarded.optimizer
        if step != COUNTED:
            began = time.perf_counter()
            values = plain(self, step)
            phases = dict(self.ledger.last_seconds)
            rows.append({"step": step, "seconds": time.perf_counter() - began, "phases": phases})
            return values
        kept, forward = Kept(model), self.updater.policy.log_probs

        def log_probs(rows):
            if not torch.is_grad_enabled():
                return forward(rows)
            with kept.forward():
                return forward(rows)

        self.updater.policy.log_probs = log_probs
        collectives, flops = Collectives(), FlopCounterMode(display=False)
        with flops, collectives:
            values = plain(self, step)
        del self.updater.policy.log_probs
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

    Trainer._step = watched
    recipe = load_recipe(str(folder / "recipe.toml"), overrides)
    result = run_recipe(recipe, folder / "run", "measure")
    assert result.status == "finished", result.reason
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank{rank}.json").write_text(json.dumps(rows))


def measure(num_ranks: int, overrides: dict[str, str]) -> list[list[dict]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measured.json")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", nargs=2, metavar=("DIR", "OVERRIDES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), json.loads(args.work[1]))
        return
    for case in args.cases:
        print(case, json.dumps(measure(*CASES[case]), indent=None)[:6000])


if __name__ == "__main__":
    main()
