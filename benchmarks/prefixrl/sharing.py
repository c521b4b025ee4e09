"""A training step on groups of 8 behind long prefixes, with and without computing each prefix once per group.

    python benchmarks/prefixrl/sharing.py --prefix 256 --continuation 64

Forward, loss and backward of the same batch, both ways in turn; CPU seconds, medians, and their ratio. The ratio that
token counts predict stands beside it. Left out: rollout (which prefills a prompt once per group either way), and peers.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from heliostat.config import ModelSection
from heliostat.models import load_model
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import Completion, Cut, Problem, Prompt, StopReason

GROUP = 8


def rows(loaded, num_groups: int, prefix: int, continuation: int) -> list[Row]:
    random = np.random.default_rng(0)
    nothing = np.zeros(continuation, dtype=np.float32)
    made = []
    for group in range(num_groups):
        ids = tuple(random.integers(5, len(loaded.tokenizer), prefix).tolist())
        prompt = Prompt(Problem(f"p{group}", "t", "?"), (loaded.eos_id,), ids, Cut("prefix", prefix))
        for _ in range(GROUP):
            tokens = tuple(random.integers(5, len(loaded.tokenizer), continuation).tolist())
            made.append(Row(group, prompt, Completion(tokens, nothing, nothing, StopReason.EOS, ""), 1.0, None))
    return made


def step_s(policy: Policy, batch: list[Row]) -> tuple[float, torch.Tensor]:
    """CPU seconds of forward and backward, and a gradient to compare."""
    policy.loaded.model.zero_grad(set_to_none=True)
    started = time.process_time()
    policy.log_probs(batch).sum().backward()
    seconds = time.process_time() - started
    return seconds, next(p.grad for p in policy.loaded.model.parameters() if p.grad is not None).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", type=int, default=256)
    parser.add_argument("--continuation", type=int, default=64)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(ModelSection(path="tiny", settings={"context_length": 2048}), 0)
    loaded.model.eval()
    batch = rows(loaded, args.groups, args.prefix, args.continuation)
    policies = {"shared": Policy(loaded, 1.0, True), "unshared": Policy(loaded, 1.0, False)}
    gradients = {name: step_s(policy, batch)[1] for name, policy in policies.items()}  # warm-up, and the same answer
    difference = (gradients["shared"] - gradients["unshared"]).abs().max() / gradients["unshared"].abs().max()
    times: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(args.repeats):
        for name, policy in policies.items():
            times[name].append(step_s(policy, batch)[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    counts, ledger = UpdateCounts(), Ledger()
    counts.add(batch, shared_prompt=True)
    ledger.charge_update("update", loaded, counts)
    results = {
        "prefix": args.prefix,
        "continuation": args.continuation,
        "num_parameters": loaded.num_parameters,
        "shared_cpu_s": medians["shared"],
        "unshared_cpu_s": medians["unshared"],
        "ratio": medians["unshared"] / medians["shared"],
        "ratio_of_flops": ledger.spent_unshared / ledger.spent,
        "largest_gradient_difference": float(difference),
    }
    print(json.dumps(results, indent=1))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
