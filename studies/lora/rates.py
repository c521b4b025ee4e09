"""Does a learning rate carry over from rank 1 to 64? Adapters on a small model, with two rules of scaling.

    OMP_NUM_THREADS=1 python studies/lora/rates.py [--seeds 2]    one row per run in rates.jsonl; goes on where it was
    python studies/lora/rates.py --table

A model of 0.1 million weights learns sums of two numbers below 30, and then adapters on every linear layer but the head
learn their differences, with AdamW at a constant rate. ``alpha/r`` is the library's scale (``lora.alpha / lora.rank``),
``alpha/sqrt(r)`` that of rank-stabilised LoRA, by another alpha at each rank.

Left out: rewards. Supervised targets have less noise, so that a best rate can be seen in seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heliostat.config import LoraSection, ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.lora import add_adapters

STORED = Path(__file__).parent / "rates.jsonl"
RANKS, RATES = (1, 8, 64), (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
ALPHA, NUM_STEPS, NUM_BEFORE, BATCH = 16, 100, 300, 64
RULES = {"alpha/r": lambda rank: ALPHA, "alpha/sqrt(r)": lambda rank: round(ALPHA * rank**0.5)}
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
Row = dict[str, Any]


def small() -> LoadedModel:
    return load_model(ModelSection(path="tiny", dtype="float32", settings=SHAPE), 0, torch.device("cpu"))


@cache
def problems(sign: str) -> tuple[Tensor, Tensor]:
    """Token ids of every problem and their labels, of which those to ignore are -100; padded on the right."""
    loaded = small()
    encode = loaded.tokenizer.encode
    rows, starts = [], []
    for a in range(30):
        for b in range(30):
            prompt = encode(f"{a} {sign} {b} =")
            rows.append([*prompt, *encode(f" {a + b if sign == '+' else a - b}")])
            starts.append(len(prompt))
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        labels[number, start : len(row)] = ids[number, start : len(row)]
    return ids, labels


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def train(model: nn.Module, sign: str, lr: float, num_steps: int, seed: int) -> float:
    """Train what has a gradient, and return the loss on the held-out fifth; infinite where it diverged."""
    ids, labels = problems(sign)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    known, heldout = order[len(ids) // 5 :], order[: len(ids) // 5]
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(num_steps):
        batch = known[torch.randint(len(known), (BATCH,), generator=draws)]
        optimizer.zero_grad()
        loss_of(model, ids[batch], labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(loss_of(model, ids[heldout], labels[heldout]))
    return loss if loss == loss else float("inf")


@cache
def start() -> dict[str, Tensor]:
    """Weights of the model that knows sums."""
    loaded = small()
    train(loaded.model, "+", 3e-3, NUM_BEFORE, seed=0)
    return {name: weight.clone() for name, weight in loaded.model.state_dict().items()}


def one(rule: str, rank: int, lr: float, seed: int) -> Row:
    began, loaded = time.process_time(), small()
    loaded.model.load_state_dict(start())
    add_adapters(loaded.model, LoraSection(rank=rank, alpha=RULES[rule](rank)), seed)
    loss = train(loaded.model, "-", lr, NUM_STEPS, seed)
    spent = round(time.process_time() - began, 1)
    return {"rule": rule, "rank": rank, "lr": lr, "seed": seed, "loss": round(loss, 4), "cpu_s": spent}


def stored() -> list[Row]:
    return [json.loads(line) for line in STORED.read_text().splitlines()] if STORED.exists() else []


def table(rows: list[Row]) -> str:
    """Mean held-out loss over seeds by rule, rank and rate, the best of each rank in bold."""
    lines = ["| rule | rank | " + " | ".join(f"{lr:g}" for lr in RATES) + " |", "|---|--:|" + "--:|" * len(RATES)]
    for rule in RULES:
        for rank in RANKS:
            found = {lr: [row["loss"] for row in rows if (row["rule"], row["rank"], row["lr"]) == (rule, rank, lr)]
                     for lr in RATES}  # fmt: skip
            means = {lr: sum(losses) / len(losses) for lr, losses in found.items() if losses}
            best = min(means, key=lambda lr: means[lr], default=None)
            shown = [f"{means[lr]:.3f}" if lr in means else "" for lr in RATES]
            cells = [f"**{cell}**" if lr == best else cell for lr, cell in zip(RATES, shown, strict=True)]
            lines.append(f"| {rule} | {rank} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of the stored runs only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["rule"], row["rank"], row["lr"], row["seed"]) for row in stored()}
    for seed in range(arguments.seeds):
        for key in ((rule, rank, lr, seed) for rule in RULES for rank in RANKS for lr in RATES):
            if not arguments.table and key not in done:
                row = one(*key)
                with STORED.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(stored()))


if __name__ == "__main__":
    main()
