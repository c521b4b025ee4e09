"""Exact lookahead: passes saved by drafts from an earlier epoch, against the cost of longer passes.

    heliostat train demo --run runs/demo
    OMP_NUM_THREADS=1 python benchmarks/race_trl/lookahead.py runs/demo

A completion's random stream fixes its tokens, so a draft is right if it is the token that the stream draws, and the
result of checking several at once is the very same completion. A group is sampled, and sampled again with another seed
as a later epoch would: the second's drafts continue the first's completions that begin with the same tokens, by the
most frequent next token. Weights do not move in between, which favours drafts.

``k`` drafts make a pass of ``rows`` completions as costly as one of ``(k + 1) rows``: its time is measured on the spot.
A draft that is missing costs nothing here, which favours lookahead too.

Left out: drafts of a second model, and siblings, which are decoded at the same time and have no token to lend.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from decoding import GROUP, PROMPT
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.research import open_experiment
from heliostat.rollout.in_process.fused import fused_layers
from heliostat.rollout.in_process.shared import SharedRows, attending
from heliostat.types import Group

DRAFTS, ROWS, NUM_PASSES = (0, 1, 2, 3), (8, 24, 64), 24


def num_passes(tokens: tuple[int, ...], earlier: Group, num_drafts: int) -> int:
    """Count the passes that decode these tokens, if each pass checks up to ``num_drafts`` drafts."""
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for completion in earlier.completions:
        ids = completion.token_ids
        for place, token in enumerate(ids):
            following[ids[:place]][token] += 1
    place = passes = 0
    while place < len(tokens):
        passes += 1
        place += 1  # the token that the pass draws in any case
        for _ in range(num_drafts):
            begun = following.get(tokens[:place])
            if place >= len(tokens) or begun is None or begun.most_common(1)[0][0] != tokens[place]:
                break
            place += 1
    return passes


def pass_ms(loaded: LoadedModel, num_rows: int) -> float:
    """CPU milliseconds of a decoding pass, the best of several."""
    layers = fused_layers(loaded, reorders=True)
    if layers is None:
        raise SystemExit(f"{loaded.name}: its layers are not fused")
    with torch.inference_mode(), attending(loaded.model), layers.prepared():
        cache = DynamicCache(config=loaded.model.config)
        ids = torch.full((num_rows // GROUP, PROMPT), loaded.pad_id)
        loaded.head.hidden(input_ids=ids, past_key_values=cache, use_cache=True)
        rows = SharedRows(cache, torch.zeros(len(ids), dtype=torch.long), GROUP, NUM_PASSES + 1)
        token, taken = torch.full((num_rows, 1), loaded.pad_id), []
        for _ in range(NUM_PASSES):
            began = time.process_time()
            loaded.head.logits(layers.hidden(rows, token)[:, -1])
            taken.append(time.process_time() - began)
    return 1e3 * min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--problems", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open_experiment(args.run / "recipe.toml", {"model.path": str(args.run / "model")}) as experiment:
        loaded = experiment.loaded
        problems = experiment.problems(0, args.problems)
        first, second = (experiment.sample(problems, GROUP, seed=seed) for seed in (1, 2))
    drawn = [(earlier, each) for earlier, later in zip(first, second, strict=True) for each in later.completions]
    entropy = sum(float(each.entropy.sum()) for _, each in drawn) / sum(len(each.token_ids) for _, each in drawn)
    plain = sum(len(each.token_ids) for _, each in drawn)
    print(f"{plain / len(drawn):.1f} tokens a completion, {entropy:.2f} nats a token\n")
    print(f"| drafts a pass | passes x plain | {' | '.join(f'time x plain, {rows} rows' for rows in ROWS)} |")
    print(f"|--:|{'--:|' * (1 + len(ROWS))}")
    alone = {rows: pass_ms(loaded, rows) for rows in ROWS}
    for drafts in DRAFTS:
        share = sum(num_passes(each.token_ids, earlier, drafts) for earlier, each in drawn) / plain
        longer = {rows: pass_ms(loaded, (drafts + 1) * rows) if drafts else alone[rows] for rows in ROWS}
        times = [share * longer[rows] / alone[rows] for rows in ROWS]
        print(f"| {drafts} | {share:.2f} | {' | '.join(f'{each:.2f}' for each in times)} |")


if __name__ == "__main__":
    main()
