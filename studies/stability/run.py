"""Does stable likelihood training collapse a generator? Seven arms, two families, two sizes, three seeds.

    python studies/stability/run.py [--minutes 7]     one row per run in results.jsonl; goes on where it ended
    python studies/stability/run.py --table           the tables of the page

A row has the trace of one training: held-out cross-entropy and the statistics of the model's own text at six times.
Arms are compared where they have the same held-out cross-entropy, not after the same number of steps.

Left out: subword vocabularies, and models that take more than seconds to train.
"""

from __future__ import annotations

import argparse
import copy
import json
import pydoc_data.topics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from models import FAMILIES, SIZES, CharacterModel, generate
from torch import Tensor, nn

from heliostat.monitors.controllers import ProportionalIntegral
from heliostat.monitors.repetition import distinct_share, loop_period, repeated_share
from heliostat.statistics import bootstrap

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
CONTEXT, PROMPT = 128, 16
NUM_STEPS, LOOKS = 400, (80, 120, 180, 250, 320, 400)
START = 120
"""Feedback begins here; the statistics of that moment are its targets."""
N = 8
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """How one model is trained.

    Attributes:
        average: decay of the weights' moving average, which is what is measured; 0: the weights themselves.
        own_text: share of each batch from step START on that is text of the model's own.
        pull: weight of (H_own - H*)^2 in the loss from step START on.
        steer_lr: a controller lowers the learning rate while the entropy of own text is below H*.
        num_characters: training text; 0: all of it.
    """

    lr: float = 3e-3
    clip: float = 1.0
    batch: int = 8
    weight_decay: float = 0.0
    average: float = 0.0
    own_text: float = 0.0
    pull: float = 0.0
    steer_lr: bool = False
    num_characters: int = 0


ARMS = {
    "A plain": Arm(),
    "B stable": Arm(lr=2e-3, clip=0.1, batch=16, weight_decay=0.1, average=0.98),
    "C noisy": Arm(lr=1e-2, clip=1e9, batch=4),
    "D memorising": Arm(num_characters=4000),
    "E1 statistic held": Arm(pull=1.0),
    "E2 own text": Arm(own_text=0.5),
    "E3 rate steered": Arm(steer_lr=True),
}


def text() -> tuple[np.ndarray, np.ndarray, int]:
    """Character ids to train on and held out (5%, in blocks of 2,000), and how many characters there are."""
    raw = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    names = sorted(set(raw))
    ids = np.asarray([names.index(c) for c in raw])
    blocks = [ids[start : start + 2000] for start in range(0, len(ids) - 2000, 2000)]
    held = set(np.random.default_rng(0).permutation(len(blocks))[: len(blocks) // 20].tolist())
    train, heldout = ([b for i, b in enumerate(blocks) if (i in held) == kept] for kept in (False, True))
    return np.concatenate(train), np.concatenate(heldout), len(names)


def windows(ids: np.ndarray, num: int, rng: np.random.Generator) -> Tensor:
    starts = rng.integers(0, len(ids) - CONTEXT, num)
    return torch.from_numpy(np.stack([ids[start : start + CONTEXT] for start in starts]))


def entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def likelihood(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids)[:, :-1]
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def one(family: str, size: str, name: str, seed: int) -> dict:
    """Train one model; returns its row."""
    began, arm = time.process_time(), ARMS[name]
    train, heldout, num_characters = text()
    train = train[: arm.num_characters or len(train)]
    torch.manual_seed(seed)
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = FAMILIES[family](num_characters, *SIZES[size][family], CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.lr, weight_decay=arm.weight_decay)
    shown = copy.deepcopy(model)
    controller = ProportionalIntegral(deadband=0.02)
    own: Tensor | None = None  # texts of the model's own, from when feedback starts
    target: float | None = None
    rate, norms, looks = 1.0, [], []
    for step in range(1, NUM_STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = arm.lr * rate * min(1.0, step / 20)
        feedback = step > START and (arm.pull or arm.own_text or arm.steer_lr)
        if feedback and (own is None or step % 10 == 1):
            own = generate(model, windows(train, 32, rng)[:, :PROMPT], CONTEXT - PROMPT, False, draws)
            with torch.no_grad():
                measured = float(entropy(model(own)[:, PROMPT - 1 : -1]).mean())
            target = measured if target is None else target
            if arm.steer_lr:
                rate = 1.0 - 0.9 * controller.update(measured, target)
        batch = windows(train, arm.batch, rng)
        if own is not None and arm.own_text:
            num = int(arm.own_text * arm.batch)
            batch[:num] = own[torch.randint(len(own), (num,), generator=draws)]
        loss = likelihood(model, batch)
        if own is not None and target is not None and arm.pull and step % 5 == 0:
            loss = loss + 5 * arm.pull * (entropy(model(own[:16])[:, PROMPT - 1 : -1]).mean() - target) ** 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), arm.clip)))
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(shown.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs, 1 - arm.average)
        if step in LOOKS:
            looks.append({"step": step, "train_loss": round(float(loss.detach()), 4), **look(shown, train, heldout)})
    num = sum(p.numel() for p in model.parameters())
    return {"family": family, "size": size, "arm": name, "seed": seed, "parameters": num, "target": target,
            "norm": [round(float(np.median(norms[-100:])), 3), round(float(np.max(norms[-100:])), 3)],
            "looks": looks, "cpu_s": round(time.process_time() - began, 1)}  # fmt: skip


@torch.no_grad()
def look(model: CharacterModel, train: np.ndarray, heldout: np.ndarray) -> dict[str, float]:
    """Everything that is measured of a model; the same windows and prompts for all."""
    rng, draws = np.random.default_rng(7), torch.Generator().manual_seed(7)
    kept, seen = windows(heldout, 48, rng), windows(train, 48, rng)
    numbers: dict[str, float] = {}
    for label, ids in (("heldout", kept), ("train", seen)):
        logits = model(ids)[:, :-1]
        h = float(entropy(logits).mean())
        ce = float(nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)))
        numbers |= {f"ce_{label}": ce, f"entropy_{label}": h, f"gap_{label}": h - ce}
    frequency = np.bincount(heldout, minlength=int(model(kept[:1, :1]).shape[-1])) + 0.5
    for label, greedy in (("sampled", False), ("greedy", True)):
        ids = generate(model, kept[:, :PROMPT], CONTEXT - PROMPT, greedy, draws)
        own_entropy = float(entropy(model(ids)[:, PROMPT - 1 : -1]).mean())
        numbers |= {f"{label}_{k}": v for k, v in statistics(ids[:, PROMPT:].tolist(), frequency).items()}
        numbers[f"{label}_entropy"] = own_entropy
    data = [row[PROMPT:] for row in windows(heldout, len(kept), rng).tolist()]
    numbers |= {f"data_{k}": v for k, v in statistics(data, frequency).items()}
    return {key: round(value, 4) for key, value in numbers.items()}


def statistics(texts: list[list[int]], frequency: np.ndarray) -> dict[str, float]:
    """Repetition inside texts, loops, variety over texts, and how far single characters are from the data's."""
    own = np.bincount(np.concatenate(texts), minlength=len(frequency))
    p, q = own / own.sum(), frequency / frequency.sum()
    divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
    return {
        "rep": mean(repeated_share(t, N) or 0.0 for t in texts),
        "loops": mean(loop_period(t) is not None for t in texts),
        "distinct": distinct_share(texts, N) or 0.0,
        "unigram_kl": divergence,
    }


# -- plan and tables ---------------------------------------------------------------------------------------------------


def stored() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def at(row: dict, ce: float, key: str) -> float:
    """A statistic where the run's held-out cross-entropy was ``ce``, between looks; the nearest look beyond them."""
    looks = row["looks"]
    for before, after in pairwise(looks):
        if before["ce_heldout"] >= ce >= after["ce_heldout"]:
            width = before["ce_heldout"] - after["ce_heldout"]
            share = (before["ce_heldout"] - ce) / width if width else 0.0
            return before[key] + share * (after[key] - before[key])
    return min(looks, key=lambda look: abs(look["ce_heldout"] - ce))[key]


Pair = tuple[dict[str, float], dict[str, float]]


def matched(rows: list[dict]) -> dict[tuple[str, str, str, int], Pair]:
    """Every run's statistics and arm A's, at the lowest held-out cross-entropy that both have reached; D at its end."""
    found = {}
    for row in rows:
        place = (row["family"], row["size"], row["seed"])
        plain = [r for r in rows if (r["family"], r["size"], r["seed"]) == place and r["arm"] == "A plain"]
        if not plain:
            continue
        lowest = max(min(look["ce_heldout"] for look in r["looks"]) for r in (row, *plain))
        keys = row["looks"][-1]
        theirs = {key: at(plain[0], lowest, key) for key in keys}
        ours = keys if row["arm"].startswith("D") else {key: at(row, lowest, key) for key in keys}
        found[row["family"], row["size"], row["arm"], row["seed"]] = (ours, theirs)
    return found


COLUMNS = {
    "ce_heldout": "CE held out",
    "gap_train": "gap, train",
    "gap_heldout": "gap, held out",
    "sampled_entropy": "H of own text, T=1",
    "sampled_rep": "rep-8, T=1",
    "sampled_distinct": "distinct-8, T=1",
    "sampled_unigram_kl": "unigram KL, T=1",
    "greedy_rep": "rep-8, greedy",
    "greedy_loops": "loops, greedy",
}


def table(rows: list[dict]) -> str:
    """Means over seeds of every cell, and the pre-stated test of arm B."""
    found, lines = matched(rows), []
    for family in FAMILIES:
        for size in SIZES:
            seeds = sorted({seed for f, s, _, seed in found if (f, s) == (family, size)})
            if not seeds:
                continue
            num = next(r["parameters"] for r in rows if (r["family"], r["size"]) == (family, size))
            lines += [f"**{family}, {num:,} parameters**, {len(seeds)} seeds", ""]
            lines += ["| arm | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (1 + len(COLUMNS)) + "|"]
            for arm in ARMS:
                have = [found[family, size, arm, seed][0] for seed in seeds if (family, size, arm, seed) in found]
                cells = [f"{mean(values[key] for values in have):.3f}" if have else "" for key in COLUMNS]
                lines.append(f"| {arm} | " + " | ".join(cells) + " |")
            data = [r["looks"][-1] for r in rows if (r["family"], r["size"], r["arm"]) == (family, size, "A plain")]
            shown = [f"{mean(d[key] for d in data):.3f}" for key in ("data_rep", "data_distinct", "data_unigram_kl")]
            lines += ["| *the data* | | | | | " + " | ".join(shown) + " | | |", ""]
    if not found:
        return f"{len(rows)} runs, and no cell has all of its arms yet."
    lines += ["", "Against arm A, seed by seed over all cells (bootstrap intervals):", "",
              "| arm | H of own text, nats | gap on held-out text, nats | rep-8 at T=1 | distinct-8 at T=1 |",
              "| --- " * 5 + "|"]  # fmt: skip
    for arm in ARMS:
        if arm.startswith("A"):
            continue
        cells = []
        for key in ("sampled_entropy", "gap_heldout", "sampled_rep", "sampled_distinct"):
            gaps = [ours[key] - theirs[key] for (_, _, a, _), (ours, theirs) in found.items() if a == arm]
            if gaps:
                interval = bootstrap(gaps)
                cells.append(f"{mean(gaps):+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for family, size, seed in sorted({(f, s, seed) for f, s, _, seed in found}):
        if (family, size, "B stable", seed) not in found:
            continue
        b, a = found[family, size, "B stable", seed]
        repeats = b["sampled_rep"] >= max(2 * a["sampled_rep"], b["data_rep"])
        collapsed = b["gap_heldout"] < -0.05 or repeats
        lines.append(f"\n{family} {size} seed {seed}: B gap {b['gap_heldout']:+.3f}, rep {b['sampled_rep']:.3f} (A "
                     f"{a['sampled_rep']:.3f}): {'as the claim says' if collapsed else 'no collapse'}")  # fmt: skip
    return "\n".join([*lines, "", f"{len(rows)} runs, {sum(row['cpu_s'] for row in rows) / 60:.0f} CPU minutes."])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * args.minutes
    done = {(r["family"], r["size"], r["arm"], r["seed"]) for r in stored()}
    plan = [(f, s, arm, seed) for s in SIZES for seed in SEEDS for f in FAMILIES for arm in ARMS]
    for run in plan:
        if not args.table and run not in done and time.monotonic() < until:
            with RESULTS.open("a") as file:
                file.write(json.dumps(one(*run)) + "\n")
    print(table(stored()))


if __name__ == "__main__":
    main()
