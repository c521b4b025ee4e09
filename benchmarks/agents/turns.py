"""Measure the cost of several turns: CPU seconds of episodes and of one turn with as many sampled tokens.

    python benchmarks/agents/turns.py

Both sides decode 64 completions of the 5M model and take one gradient. The episodes have eight turns of 16 sampled
tokens on average, with replies of 8 tokens that are ready at once. Interleaved, one thread; medians of process time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time

import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.train.logprobs.packing import microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Group, Problem, TrainingGroup

FIVE_MILLION = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4}
NUM_PROMPTS, GROUP_SIZE, NUM_TURNS, MEAN_TURN, REPLY = 8, 8, 8, 16, 8


def sample(loaded: LoadedModel, several_turns: bool, num_tokens: int, seed: int) -> tuple[list[Group], float]:
    """Sample episodes, or completions of ``num_tokens`` tokens each; return them with the CPU seconds."""
    prompts = [
        encode_problem(loaded, Problem(f"p{number}", "sums", f"{number} + 25 - 3 + 41 ="))
        for number in range(NUM_PROMPTS)
    ]
    dialogues = None
    ends: frozenset[int] = frozenset()
    if several_turns:
        ends = frozenset(range(0, loaded.model.config.vocab_size, MEAN_TURN))
        dialogues = [
            [Scripted(script(range(30, 90), NUM_TURNS - 1, REPLY), 10**6) for _ in range(GROUP_SIZE)] for _ in prompts
        ]
    engine = TorchEngine(dataclasses.replace(loaded, eos_ids=ends), DecodeLimits(num_tokens))
    began = time.process_time()
    groups = engine.sample(
        SampleRequest(prompts, GROUP_SIZE, SamplingSettings(), seed=seed, policy_step=0, dialogues=dialogues)
    )
    return groups, time.process_time() - began


def train(loaded: LoadedModel, groups: list[Group]) -> float:
    """Take the gradient of the log-probabilities; return the CPU seconds."""
    policy = Policy(loaded, 1.0, shared_prompt=True)
    rows = rows_of([TrainingGroup(group, torch.zeros(len(group.completions))) for group in groups])
    began = time.process_time()
    for part in microbatches(rows, 8192, policy.padded_tokens):
        policy.log_probs(part).sum().backward()
    loaded.model.zero_grad()
    return time.process_time() - began


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    loaded = load_model(ModelSection(path="tiny", dtype="float32", settings=FIVE_MILLION), 0)
    loaded.model.eval()
    seconds: dict[str, list[float]] = {
        "decode episodes": [],
        "decode one turn": [],
        "train episodes": [],
        "train one turn": [],
    }
    counts: list[int] = []
    for repeat in range(repeats + 1):
        episodes, decode_episodes = sample(loaded, True, 450, repeat)
        num = sum(group.num_tokens for group in episodes)
        completions, decode_once = sample(loaded, False, round(num / (NUM_PROMPTS * GROUP_SIZE)), repeat)
        measured = [decode_episodes, decode_once, train(loaded, episodes), train(loaded, completions)]
        if repeat:  # the first warms up
            counts.append(num)
            for values, value in zip(seconds.values(), measured, strict=True):
                values.append(value)
    medians = {key: round(statistics.median(values), 3) for key, values in seconds.items()}
    ratio = (medians["decode episodes"] + medians["train episodes"]) / (
        medians["decode one turn"] + medians["train one turn"]
    )
    print(
        json.dumps(
            {"parameters": loaded.num_parameters, "sampled_tokens": counts[-1], **medians, "ratio": round(ratio, 3)}
        )
    )


if __name__ == "__main__":
    main()
