"""How fast the trace bank takes and gives: append, and pick k successes for each of many problems.

    python benchmarks/prefixrl/bank.py --traces 1000000 --problems 10000

Prints CPU seconds (this process's own) and wall seconds, since the disk is part of the story. Left out: Parquet.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from heliostat.traces import Bank, Trace, TraceSource

BATCH = 512  # traces of one training step


def batches(num_traces: int, num_problems: int):
    """Batches of made-up rollouts: 40 prompt tokens, 60 completion tokens with log-probabilities."""
    random = np.random.default_rng(0)
    prompts = [tuple(row) for row in random.integers(0, 500, (num_problems, 40)).tolist()]
    logp = random.standard_normal((BATCH, 60)).astype(np.float32)
    for first in range(0, num_traces, BATCH):
        source = TraceSource("tokenizer", "policy", "run", first // BATCH, 1.0, 64, "exact")
        ids = random.integers(0, 500, (BATCH, 60)).tolist()
        yield [
            Trace(
                problem_id=f"p{number % num_problems}",
                task="t",
                prompt_ids=prompts[number % num_problems],
                completion_ids=tuple(ids[number - first]),
                logp_gen=logp[number - first],
                text="x" * 120,
                reward=1.0,
                success=True,
                seed=number + 1,
                source=source,
            )
            for number in range(first, min(num_traces, first + BATCH))
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    cpu = wall = 0.0
    with tempfile.TemporaryDirectory() as folder, Bank.open(Path(folder) / "traces.bank") as bank:
        for batch in batches(args.traces, args.problems):
            started = time.process_time(), time.monotonic()
            bank.append(batch)
            cpu += time.process_time() - started[0]
            wall += time.monotonic() - started[1]
        picks = []
        for _ in range(3):
            started = time.process_time(), time.monotonic()
            found = bank.pick([f"p{number}" for number in range(args.problems)], args.k, tokenizer="tokenizer")
            picks.append((time.process_time() - started[0], time.monotonic() - started[1]))
            assert sum(map(len, found.values())) == args.k * args.problems
        size = bank.path.stat().st_size
    results = {
        "num_traces": args.traces,
        "num_problems": args.problems,
        "k": args.k,
        "append_per_cpu_s": round(args.traces / cpu),
        "append_per_wall_s": round(args.traces / wall),
        "pick_cpu_s": sorted(one[0] for one in picks)[1],
        "pick_wall_s": sorted(one[1] for one in picks)[1],
        "bytes_per_trace": round(size / args.traces),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(results, indent=1))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
